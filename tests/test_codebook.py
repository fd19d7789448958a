"""fastgen.nn.Codebook: what it computes, how its codes move, what it refuses."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from fastgen.nn import Codebook

KINDS = pytest.mark.parametrize(
    "options",
    [{}, {"ema": False}, {"revive_below": 0.1}, {"ema": False, "revive_below": 0.1}],
    ids=["ema", "gradient", "ema, revived", "gradient, revived"],
)


def codebook(num_codes=7, dim=4, **options):
    torch.manual_seed(0)
    book = Codebook(num_codes, dim, **options)
    with torch.no_grad():  # apart: no two codes are close
        book.embed.copy_(torch.randn(num_codes, dim))
        book.cluster_size.fill_(1)
        if book.ema:
            book.embed_avg.copy_(book.embed)
    return book


def vectors(*shape, **options):
    return torch.randn(*(shape or (3, 4, 5, 2)), **options)


def nearest(z, embed, dim):
    rows = z.detach().movedim(dim, -1).double()
    return (
        torch.cdist(rows.reshape(-1, rows.shape[-1]), embed.double())
        .argmin(1)
        .view(rows.shape[:-1])
    )


def state(book):
    return {name: value.clone() for name, value in book.state_dict().items()}


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "shape, dim",
    [((3, 4, 5, 2), 1), ((6, 4), -1), ((2, 5, 4), 2), ((4, 3), 0), ((2, 4, 1, 2, 3), 1)],
)
def test_values_indices_and_loss_are_those_of_the_paper(shape, dim, training):
    book, z = codebook().train(training), vectors(*shape, requires_grad=True)
    embed = book.embed.clone()
    quantized, indices, loss = book(z, dim)
    expected = nearest(z, embed, dim)
    assert torch.equal(indices, expected) and indices.dtype == torch.int64
    codes = embed[expected].movedim(-1, dim)
    assert torch.equal(quantized, codes) and quantized.dtype == z.dtype
    torch.testing.assert_close(loss, 0.25 * F.mse_loss(z, codes))
    weight = vectors(*shape)
    ((quantized * weight).sum() + 3 * loss).backward()
    by_hand = weight + 3 * 0.25 * 2 * (z.detach() - codes) / z.numel()
    torch.testing.assert_close(z.grad, by_hand)


def test_without_averages_the_codes_get_the_gradient_of_the_codebook_loss():
    book, z = codebook(ema=False, beta=0.5), vectors()
    _, indices, loss = book(z)
    twin = book.embed.detach().clone().requires_grad_()
    expected = F.mse_loss(twin[indices].movedim(-1, 1), z)
    torch.testing.assert_close(loss, 1.5 * expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(book.embed.grad, twin.grad)


def test_gradients_are_exact_in_float64():
    moving, learned = codebook().double().eval(), codebook(ema=False, beta=0.0).double().eval()
    z = moving.embed[torch.tensor([[0, 3], [3, 6]])].movedim(-1, 1)
    z = z + 0.01 * torch.randn_like(z)
    assert gradcheck(lambda z: moving(z)[2], z.clone().requires_grad_())
    assert gradcheck(
        lambda embed: torch.func.functional_call(learned, {"embed": embed}, z)[2], learned.embed
    )


def test_codes_follow_as_moving_averages():
    book, z = codebook(decay=0.9), vectors()
    before = state(book)
    _, indices, _ = book(z)
    chosen = F.one_hot(indices.flatten(), 7).double()
    size = 0.9 * before["cluster_size"] + 0.1 * chosen.sum(0)
    rows = z.movedim(1, -1).reshape(-1, 4).double()
    average = 0.9 * before["embed_avg"] + 0.1 * chosen.t() @ rows
    torch.testing.assert_close(book.cluster_size, size.float())
    torch.testing.assert_close(book.embed_avg, average.float())
    torch.testing.assert_close(book.embed, (average / size[:, None]).float(), rtol=1e-4, atol=1e-5)


def test_training_brings_the_codes_to_the_data():
    centers = torch.tensor([[4.0, 0], [-4, 0], [0, 4], [0, -4]])
    for options in ({"revive_below": 0.1}, {"revive_below": 0.1, "ema": False}):
        torch.manual_seed(1)
        book = Codebook(4, 2, decay=0.9, **options)
        optimizer = None if book.ema else torch.optim.SGD(book.parameters(), lr=0.3)
        for _ in range(60):
            z = centers[torch.randint(4, (64,))] + 0.1 * torch.randn(64, 2)
            loss = book(z)[2]
            if optimizer is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        distances = torch.cdist(centers, book.embed.detach())
        assert distances.amin(1).max() < 0.2, options
        assert book.usage == 1 and book.perplexity > 3.5


@KINDS
def test_eval_mode_writes_nothing_and_gives_the_same_answers(options):
    book = codebook(**options)
    before = state(book)
    with torch.no_grad():
        quantized, indices, loss = book.eval()(z := vectors())
    assert_same_bits(state(book), before)
    again = book.train()(z)
    assert torch.equal(again[0], quantized) and torch.equal(again[1], indices)
    torch.testing.assert_close(again[2], loss)
    assert not torch.equal(book.cluster_size, before["cluster_size"])


def test_encode_and_decode_are_the_two_halves():
    book, z = codebook(), vectors()
    indices = book.encode(z)
    quantized, same, _ = book.eval()(z)
    assert torch.equal(indices, same)
    assert torch.equal(book.decode(indices), quantized)
    assert book.decode(indices, dim=-1).shape == (3, 5, 2, 4)
    assert torch.equal(book.decode(torch.tensor(3), dim=0), book.embed[3])


@KINDS
def test_two_forwards_before_one_backward(options):
    book, z = codebook(**options), vectors(requires_grad=True)
    embed = book.embed.detach().clone()
    first = book(z)
    second = book(2 * z.detach())
    (first[0].sum() + first[2] + second[2]).backward()
    codes = embed[first[1]].movedim(-1, 1)
    torch.testing.assert_close(z.grad, 1 + 0.25 * 2 * (z.detach() - codes) / z.numel())


@KINDS
def test_an_empty_batch_changes_nothing(options):
    book = codebook(**options)
    before = state(book)
    z = vectors(0, 4, 5, 2, requires_grad=True)
    quantized, indices, loss = book(z)
    assert quantized.shape == z.shape and indices.shape == (0, 5, 2) and loss == 0
    loss.backward()
    assert z.grad.shape == z.shape
    assert_same_bits(state(book), before)


@KINDS
def test_vectors_that_are_not_finite_move_no_code(options):
    book, clean = codebook(**options), vectors(1, 4, 3, 1)
    twin = copy.deepcopy(book)
    z = torch.cat([clean, clean.new_full((1, 4, 1, 1), torch.nan).expand(1, 4, 3, 1)])
    z[1, 0, 0] = torch.inf
    quantized, indices, loss = book(z)
    assert (indices[1] == 0).all() and quantized[1].isnan().all() and loss.isnan()
    twin(clean)
    if not options.get("revive_below"):  # the two draw from other numbers of rows
        assert_same_bits(state(book), state(twin))
    assert all(value.isfinite().all() for value in state(book).values())
    book.load_state_dict(before := state(twin))
    book(z[1:])
    assert_same_bits(state(book), before)


@KINDS
def test_float64_is_computed_in_float64(options):
    book, z = codebook(**options).double(), vectors(dtype=torch.float64)
    quantized, _, loss = book(z)
    assert quantized.dtype == loss.dtype == torch.float64
    assert all(value.dtype == torch.float64 for value in state(book).values())


def test_autocast_takes_half_precision_vectors():
    book, z = codebook(), vectors()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = F.conv2d(z, torch.eye(4).view(4, 4, 1, 1))
        quantized, indices, loss = book(mixed)
    assert quantized.dtype == mixed.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert torch.equal(indices, nearest(mixed, codebook().embed, 1))


def test_a_codebook_to_be_revived_starts_as_rows_of_its_first_batch():
    # so far from the first codes that all rows choose one of them, which becomes their mean
    book, z = Codebook(5, 3, revive_below=0.1), 10 + vectors(40, 3)
    book(z)
    assert (book.embed[:, None] == z).all(2).any(1).sum() == 4 and book.usage == 1
    assert len({tuple(code.tolist()) for code in book.embed}) == 5
    sums = book.embed * book.cluster_size[:, None]
    torch.testing.assert_close(book.embed_avg, sums, rtol=1e-3, atol=0)  # smoothed


@pytest.mark.parametrize("ema", [True, False])
def test_a_dead_code_comes_back_with_all_its_state(ema):
    book = codebook(ema=ema, decay=0.5, revive_below=0.1)
    with torch.no_grad():
        book.embed[2] = 1e3
        if ema:
            book.embed_avg[2] = 1e3
    z = vectors(50, 4)
    book(z)
    assert book.embed[2].min() > 900
    book(z)  # now below a tenth of the equal share
    assert (book.embed[2] == z).all(1).any() and book.cluster_size[2] > 5
    for _ in range(5):  # and it stays: the next update does not bury it
        book(z)
        assert book.embed[2].abs().max() < 10
    assert book.dead_codes == 0


def test_more_dead_codes_than_rows_revive_as_many_as_there_are_rows():
    book, z = Codebook(9, 2, revive_below=0.5), 10 + vectors(3, 2)
    book(z)
    assert (book.embed == 0).all(1).sum() == 9 - 1 - 3
    assert all((book.embed == row).all(1).any() for row in z)


def test_without_revival_dead_codes_are_seen():
    book = codebook(decay=0.5)
    z = book.embed[:2].clone()
    for _ in range(12):
        book(z)
    assert book.dead_codes == 5
    torch.testing.assert_close(book.usage, torch.tensor(2 / 7))
    torch.testing.assert_close(book.perplexity, torch.tensor(2.0), atol=0.02, rtol=0)


@KINDS
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_training_step_compiles_without_a_graph_break(options, backend):
    torch._dynamo.reset()
    book, z = codebook(decay=0.5, **options), vectors(requires_grad=True)
    with torch.no_grad():
        book.embed[3] = 9  # to be revived
    twin = copy.deepcopy(book)

    def step(book, z):
        quantized, _, loss = book(z)
        return quantized.square().sum() + loss

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for _ in range(3):
        grads = []
        for run, each in ((step, twin), (compiled, book)):
            torch.manual_seed(1)
            inputs = [z, *each.parameters()]
            grads.append(torch.autograd.grad(run(each, z), inputs))
        torch.testing.assert_close(*grads)
        if backend == "aot_eager":  # inductor has random numbers of its own
            torch.testing.assert_close(state(book), state(twin))
        twin.load_state_dict(book.state_dict())


@KINDS
def test_copies_and_checkpoints_are_equal(options):
    book = codebook(**options)
    book(vectors())
    pickled = pickle.loads(pickle.dumps(book))
    saved = io.BytesIO()
    torch.save(book.state_dict(), saved)
    saved.seek(0)
    loaded = Codebook(7, 4, **options)
    loaded.load_state_dict(torch.load(saved))
    for other in (copy.deepcopy(book), pickled, loaded):
        assert_same_bits(state(other), state(book))
        assert torch.equal(other(z := vectors())[0], copy.deepcopy(book)(z)[0])


def test_inference_mode_runs():
    book = codebook().eval()
    with torch.inference_mode():
        assert book(vectors())[0].isfinite().all()


def test_checkpoints_of_the_rosinality_layout():
    torch.manual_seed(0)
    sd = {"embed": torch.randn(4, 7), "cluster_size": torch.rand(7), "embed_avg": torch.rand(4, 7)}
    book = Codebook.from_state_dict(sd, layout="rosinality", beta=0.5, decay=0.8)
    assert (book.num_codes, book.dim, book.beta, book.decay, book.ema) == (7, 4, 0.5, 0.8, True)
    for name, value in (("embed", sd["embed"].t()), ("embed_avg", sd["embed_avg"].t())):
        assert torch.equal(getattr(book, name), value)
    assert torch.equal(book.cluster_size, sd["cluster_size"])
    z = vectors(6, 4)
    assert torch.equal(book(z)[1], nearest(z, sd["embed"].t(), -1))
    assert not torch.equal(book.embed, sd["embed"].t())  # which it does not share


def test_checkpoints_of_the_taming_layout():
    sd = {"embedding.weight": torch.randn(7, 4)}
    book = Codebook.from_state_dict(sd, layout="taming")
    assert not book.ema and torch.equal(book.embed, sd["embedding.weight"])
    assert book.embed.requires_grad
    book = Codebook.from_state_dict(sd, layout="taming", ema=True, revive_below=0.1)
    book(vectors(6, 4))
    assert (book.cluster_size > 0.9).all()  # loaded codes are not taken for dead ones


@pytest.mark.parametrize(
    "sd, layout, message",
    [
        ({}, "other", "layout must be 'rosinality' or 'taming', got 'other'"),
        ({"quantize.embed": torch.ones(4, 7)}, "rosinality", "got quantize.embed; take the layer"),
        ({}, "taming", "sd must hold embedding.weight for the layout 'taming', got nothing"),
        ({"embedding.weight": torch.ones(4)}, "taming", r"must be a matrix, got shape \(4,\)"),
        (
            {
                "embed": torch.ones(4, 7),
                "cluster_size": torch.ones(4),
                "embed_avg": torch.ones(4, 7),
            },
            "rosinality",
            r"must fit embed \(4, 7\)",
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(sd, layout, message):
    with pytest.raises(ValueError, match=message):
        Codebook.from_state_dict(sd, layout=layout)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_codes": 0}, "num_codes must be a positive int, got 0"),
        ({"dim": 2.0}, "dim must be a positive int, got 2.0"),
        ({"decay": 1.5}, r"decay must be in \[0, 1\], got 1.5"),
        ({"decay": float("nan")}, "decay must be in .* got nan"),
        ({"beta": -1}, "beta must be in .* got -1"),
        ({"revive_below": 2}, "revive_below must be in .* got 2"),
    ],
)
def test_bad_arguments_say_what_to_do(options, message):
    with pytest.raises(ValueError, match=f"fastgen.nn.Codebook: {message}"):
        Codebook(**{"num_codes": 7, "dim": 4} | options)


def test_bad_input_says_what_to_do():
    book = codebook()
    with pytest.raises(TypeError, match="got torch.int64"):
        book(torch.ones(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="size .*4"):
        book(vectors(2, 5, 4, 3))
    with pytest.raises(ValueError, match="dim must be an axis of x"):
        book(vectors(2, 4), dim=2)
    for index in (-1, 7):
        with pytest.raises(
            IndexError, match=f"indices must be in 0 .. 6, got {index}; they belong"
        ):
            book.decode(torch.tensor([[0, index]]))
    with pytest.raises(TypeError, match="indices must be an int64 tensor, got torch.float32"):
        book.decode(torch.ones(3))
    with pytest.raises(ValueError, match=r"dim must be an axis of the result, -2 .. 1, got 2"):
        book.decode(torch.ones(3, dtype=torch.int64), dim=2)


RANKED = ({}, {"revive_below": 0.9}, {"ema": False}, {"ema": False, "revive_below": 0.9})


def train_on_rank(rank, ranks, path, rows):
    torch.set_num_threads(1)
    if ranks > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{path}/rendezvous", rank=rank, world_size=ranks
        )
    books = [codebook(decay=0.9, **options) for options in RANKED]
    torch.manual_seed(rank)  # their random numbers may well differ
    for step, mine in enumerate(rows):
        if ranks > 1:  # rank 1 has no rows in step 1
            border = 5 if step != 1 else len(mine)
            mine = (mine[:border], mine[border:])[rank]
        for book in books:
            book(mine)
    torch.save([book.state_dict() for book in books], f"{path}/{ranks}-{rank}.pt")
    if ranks > 1:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_keep_one_codebook_that_of_one_rank_with_all_rows(tmp_path):
    rows = vectors(3, 12, 4)
    train_on_rank(0, 1, tmp_path, rows)
    torch.multiprocessing.spawn(train_on_rank, (2, tmp_path, rows), nprocs=2)
    each = [torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1")]
    for options, one, first, second in zip(RANKED, *each, strict=True):
        assert_same_bits(first, second)
        if "revive_below" not in options:  # which draws other rows
            for name, value in one.items():
                torch.testing.assert_close(first[name], value)

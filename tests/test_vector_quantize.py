import copy
import inspect
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from vq_peer import (
    assert_same_results,
    assert_same_training,
    assert_unchanged,
    peer_of,
    rows,
    state_of,
    twins,
)

import fastgen.nn
from fastgen.nn import VectorQuantize

PLAIN = dict(dim=8, codebook_size=16)
SEPARATE = dict(heads=2, codebook_dim=4, separate_codebook_per_head=True)
GRADIENT = dict(learnable_codebook=True, ema_update=False)


# --- the package's answers ---


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(rotation_trick=False),
        dict(decay=0.99, commitment_weight=0.25, eps=1e-3),
        dict(use_cosine_sim=True),
        dict(codebook_dim=4),
        dict(codebook_dim=4, layernorm_after_project_in=True),
        dict(heads=2, codebook_dim=4),
        SEPARATE,
        SEPARATE | dict(codebook_dim=3, use_cosine_sim=True),
        GRADIENT,
        GRADIENT | SEPARATE,
        GRADIENT | dict(route_gradients_to_input=False),
        dict(route_gradients_to_input=False),
        dict(orthogonal_reg_weight=2.0),
        dict(orthogonal_reg_weight=2.0, orthogonal_reg_active_codes_only=True),
        dict(commitment_use_cross_entropy_loss=True, ema_update=False),
        dict(commitment_use_cross_entropy_loss=True, ema_update=False, use_cosine_sim=True),
        dict(freeze_codebook=True),
        dict(manual_ema_update=True),
        dict(ema_update=False),
        dict(commitment_weight=0.0),
    ],
    ids=str,
)
def test_trains_as_the_package(options):
    assert_same_training(*twins("VectorQuantize", **PLAIN | options), rows(2, 9, 8))


@pytest.mark.parametrize(
    "options, shape",
    [
        (dict(), (9, 8)),
        (dict(channel_last=False), (2, 8, 9)),
        (dict(accept_image_fmap=True), (2, 8, 3, 4)),
        (dict(accept_image_fmap=True, codebook_dim=4), (2, 8, 3, 4)),
        (dict(accept_image_fmap=True, heads=2, codebook_dim=4), (2, 8, 3, 4)),
        (dict(accept_image_fmap=True) | SEPARATE, (2, 8, 3, 4)),
        (dict(accept_3d_fmap=True), (2, 8, 2, 3, 2)),
    ],
    ids=str,
)
def test_has_the_package_s_shapes(options, shape):
    layer, peer = twins("VectorQuantize", **PLAIN | options)
    assert_same_training(layer, peer, rows(*shape))
    indices = layer(rows(*shape))[1]
    codes = layer.get_codes_from_indices(indices)
    torch.testing.assert_close(codes, peer.get_codes_from_indices(indices))
    torch.testing.assert_close(layer.get_output_from_indices(indices), layer(rows(*shape))[0])


@pytest.mark.parametrize(
    "options, arguments",
    [
        (dict(), dict(mask=rows(2, 9) > 0)),
        (dict(), dict(lens=torch.tensor([3, 7]))),
        (dict(return_zeros_for_masked_padding=False), dict(lens=torch.tensor([3, 7]))),
        (GRADIENT, dict(lens=torch.tensor([0, 7]))),
        (dict(), dict(freeze_codebook=True)),
        (dict(), dict(ema_update=False)),
        (dict(), dict(ema_update_weight=rows(16).abs())),
        (dict(), dict(ema_update_weight=lambda sums, counts: (counts > 1).float())),
        (dict(orthogonal_reg_weight=1.0), dict(return_loss_breakdown=True)),
    ],
    ids=str,
)
def test_takes_the_package_s_arguments(options, arguments):
    assert_same_training(*twins("VectorQuantize", **PLAIN | options), rows(2, 9, 8), **arguments)


@pytest.mark.parametrize("options", [{}, dict(heads=2, codebook_dim=4), SEPARATE], ids=str)
def test_cross_entropy_of_given_indices_is_the_package_s(options):
    layer, peer = twins("VectorQuantize", **PLAIN | options)
    layer.eval(), peer.eval()
    x = rows(2, 9, 8).requires_grad_()
    target = torch.randint(-1, 16, (2, 9, 2) if options else (2, 9))
    expected = peer(x, indices=target)[1]
    quantized, loss = layer(x, indices=target)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (loss, expected)))
    assert torch.equal(quantized, layer(x)[0])


@pytest.mark.parametrize("options", [{}, SEPARATE, dict(codebook_dim=4), GRADIENT], ids=str)
def test_checkpoints_load_both_ways(options):
    layer, peer = twins("VectorQuantize", **PLAIN | options)
    peer(rows(2, 9, 8))
    layer.load_state_dict(peer.state_dict(), strict=True)
    layer(rows(2, 9, 8, seed=1))
    peer.load_state_dict(layer.state_dict(), strict=True)
    layer.eval(), peer.eval()
    assert_same_results(layer(rows(3, 5, 8)), peer(rows(3, 5, 8)))


@pytest.mark.parametrize("cls", ["VectorQuantize", "ResidualVQ", "GroupedResidualVQ"])
@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_every_argument_of_the_package_is_accepted_by_name_with_its_default(cls, method):
    def parameters(owner):
        return inspect.signature(getattr(owner, method)).parameters

    ours, theirs = parameters(getattr(fastgen.nn, cls)), parameters(peer_of(cls))
    assert list(theirs) == [name for name in ours if name in theirs]
    for name, parameter in theirs.items():
        # an empty dict as a default would be shared between layers
        expected = None if parameter.default == {} else parameter.default
        assert ours[name].default == expected, name
        assert ours[name].kind == parameter.kind, name


@pytest.mark.parametrize("cls", ["VectorQuantize", "ResidualVQ", "GroupedResidualVQ"])
def test_every_attribute_of_the_package_exists_or_the_page_names_it(cls):
    page = (Path(__file__).parents[1] / "docs" / "vector_quantize.md").read_text()
    sizes = {} if cls == "VectorQuantize" else dict(num_quantizers=2)
    pairs = [twins(cls, **PLAIN, **sizes)]
    if cls == "VectorQuantize":
        pairs.append([layer._codebook for layer in pairs[0]])
    for layer, peer in pairs:
        public = {name for name in dir(peer) if not name.startswith("_")}
        assert {name for name in public - set(dir(layer)) if f"`{name}`" not in page} == set()


@pytest.mark.parametrize("cls", ["VectorQuantize", "ResidualVQ", "GroupedResidualVQ"])
@pytest.mark.parametrize(
    "option, value",
    [
        ("stochastic_sample_codes", True),
        ("sample_codebook_temp", 0.5),
        ("straight_through", True),
        ("affine_param", True),
        ("codebook_diversity_loss_weight", 1.0),
        ("directional_reparam", True),
        ("sync_update_v", 0.5),
        ("in_place_codebook_optimizer", torch.optim.SGD),
    ],
)
def test_an_option_without_a_form_here_is_refused_by_name(cls, option, value):
    sizes = {} if cls == "VectorQuantize" else dict(num_quantizers=2)
    with pytest.raises(NotImplementedError, match=option):
        getattr(fastgen.nn, cls)(**PLAIN, **sizes, **{option: value})


@pytest.mark.parametrize(
    "argument, value",
    [
        ("topk", 2),
        ("sample_codebook_temp", 0.5),
        ("codebook_transform_fn", lambda codes: codes),
        ("accum_ema_update", True),
    ],
)
def test_an_argument_without_a_form_here_is_refused_by_name(argument, value):
    with pytest.raises(NotImplementedError, match=argument):
        VectorQuantize(**PLAIN)(rows(2, 9, 8), **{argument: value})


# --- where the package fails, or answers otherwise ---


def test_float64_is_computed_in_float64():
    layer = VectorQuantize(4, 8, rotation_trick=False).double()
    x = rows(6, 4, dtype=torch.float64).requires_grad_()
    layer.eval()
    quantized, indices, _ = layer(x)
    assert quantized.dtype == torch.float64
    assert torch.equal(indices, torch.cdist(x, layer.codebook).argmin(1))
    layer.train()
    loss = layer(x)[2]
    assert loss.dtype == torch.float64

    def objective(x):
        quantized, _, loss = layer(x, freeze_codebook=True)
        return loss

    assert torch.autograd.gradcheck(objective, x)


@pytest.mark.parametrize("shift, scale", [(0, 1e-5), (1000, 1), (0, 1e15)])
def test_the_nearest_code_is_exact_far_from_the_origin_and_at_any_scale(shift, scale):
    layer = VectorQuantize(8, 64).eval()
    layer.codebook = rows(64, 8) * scale + shift
    x = rows(500, 8, seed=1) * scale + shift
    nearest = torch.cdist(x.double(), layer.codebook.double()).argmin(1)
    assert torch.equal(layer(x)[1], nearest)


@pytest.mark.parametrize("rotation", [False, True])
def test_gradients_are_those_of_the_codes_that_were_chosen(rotation):
    """Two forwards before one backward: the codes have moved in between."""
    x, y = rows(9, 8).requires_grad_(), rows(9, 8, seed=1).requires_grad_()
    layer = VectorQuantize(**PLAIN, rotation_trick=rotation)
    frozen = copy.deepcopy(layer)

    def objective(layer, x, **arguments):
        quantized, _, loss = layer(x, **arguments)
        return quantized.cos().sum() + loss

    first, second = objective(layer, x), objective(layer, y)
    (first + second).backward()
    expected = torch.autograd.grad(objective(frozen, x, freeze_codebook=True), x)[0]
    torch.testing.assert_close(x.grad, expected)


def test_gradients_of_trained_codes_are_those_before_dead_ones_were_revived():
    layer = VectorQuantize(**PLAIN, **GRADIENT, threshold_ema_dead_code=2)
    codes = layer.codebook.detach().clone().requires_grad_()
    x = rows(9, 8)
    _, indices, loss = layer(x)
    loss.backward()
    expected = torch.autograd.grad((x - codes[indices]).square().mean(), codes)[0]
    torch.testing.assert_close(layer._codebook.embed.grad[0], expected)


@pytest.mark.parametrize("options", [{}, SEPARATE, dict(accept_image_fmap=True)], ids=str)
def test_with_a_mask_the_loss_is_that_of_the_kept_rows(options):
    layer = VectorQuantize(**PLAIN, **options)
    twin = copy.deepcopy(layer)
    image = "accept_image_fmap" in options
    x = rows(2, 8, 3, 3) if image else rows(2, 9, 8)
    mask = torch.rand(2, 3, 3) > 0.5 if image else torch.rand(2, 9) > 0.5
    kept = (x.movedim(1, -1) if image else x)[mask]
    quantized, indices, loss = layer(x, mask=mask)
    kept = kept.t().reshape(1, 8, 1, -1) if image else kept.unsqueeze(0)
    torch.testing.assert_close(loss, twin(kept)[2])
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value)
    assert (indices[~mask] == -1).all()
    assert ((quantized.movedim(1, -1) if image else quantized)[~mask] == 0).all()


@pytest.mark.parametrize("heads", [dict(heads=2, codebook_dim=3), SEPARATE], ids=str)
def test_masked_positions_are_0_behind_projections_and_in_decoding(heads):
    layer = VectorQuantize(8, 16, **heads | dict(codebook_dim=3)).eval()
    mask = torch.rand(2, 9) > 0.5
    quantized, indices, _ = layer(rows(2, 9, 8), mask=mask)
    assert (quantized[~mask] == 0).all() and (indices[~mask] == -1).all()
    torch.testing.assert_close(layer.get_output_from_indices(indices), quantized)


def test_channels_first_sequences_take_lens_of_positions():
    layer = VectorQuantize(**PLAIN, channel_last=False)
    quantized, indices, _ = layer(rows(2, 8, 9), lens=torch.tensor([3, 7]))
    assert torch.equal(indices >= 0, torch.arange(9) < torch.tensor([[3], [7]]))
    assert quantized.shape == (2, 8, 9)


@pytest.mark.parametrize("options", [{}, SEPARATE, GRADIENT, dict(use_cosine_sim=True)], ids=str)
@pytest.mark.parametrize("threshold", [0, 2])
def test_an_empty_batch_costs_nothing_and_changes_nothing(options, threshold):
    layer = VectorQuantize(**PLAIN, **options, threshold_ema_dead_code=threshold)
    state = state_of(layer)
    x = torch.zeros(2, 0, 8, requires_grad=True)
    quantized, indices, loss = layer(x)
    loss.backward()
    assert loss == 0 and x.grad.shape == x.shape and indices.shape[:2] == (2, 0)
    assert_unchanged(layer, state)


@pytest.mark.parametrize("options", [{}, SEPARATE], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_without_an_active_code_the_orthogonal_loss_is_0(options, masked):
    active = dict(orthogonal_reg_weight=2.0, orthogonal_reg_active_codes_only=True)
    layer = VectorQuantize(**PLAIN, **options, **active)
    x = rows(2, 9, 8) if masked else rows(2, 0, 8)
    mask = torch.zeros(2, 9, dtype=torch.bool) if masked else None
    loss = layer(x, mask=mask)[2]
    loss.backward()
    assert loss == 0 and not layer._codebook.embed.grad.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{}, dict(threshold_ema_dead_code=2)], ids=str)
def test_a_row_that_is_not_finite_moves_no_code(bad, options):
    layer = VectorQuantize(**PLAIN, **options)
    twin = copy.deepcopy(layer)
    x = rows(9, 8)
    x[3, 2] = bad
    _, indices, loss = layer(x)
    torch.manual_seed(0), layer.eval()
    assert indices[3] == 0 and loss.isnan()
    assert all(value.isfinite().all() for value in layer.state_dict().values())
    if not options:
        twin(torch.cat((x[:3], x[4:])))
        for name, value in twin.state_dict().items():
            torch.testing.assert_close(layer.state_dict()[name], value)


def test_a_batch_of_nan_changes_nothing():
    for options in ({}, dict(threshold_ema_dead_code=2), dict(kmeans_init=True)):
        layer = VectorQuantize(**PLAIN, **options)
        state = state_of(layer)
        layer(torch.full((9, 8), float("nan")))
        assert_unchanged(layer, state)


@pytest.mark.parametrize("options", [{}, SEPARATE, dict(use_cosine_sim=True)], ids=str)
def test_eval_mode_and_frozen_codebooks_write_nothing(options):
    layer = VectorQuantize(**PLAIN, **options, threshold_ema_dead_code=3)
    state = state_of(layer)
    layer(rows(2, 9, 8), freeze_codebook=True)
    assert_unchanged(layer, state)
    layer.eval()
    loss = layer(rows(2, 9, 8))[2]
    assert loss == 0
    loss += 1  # a fresh one each time
    assert layer(rows(2, 9, 8))[2] == 0
    with torch.inference_mode():
        layer(rows(2, 9, 8))
    assert_unchanged(layer, state)


def test_trains_in_inference_mode_as_elsewhere():
    layer = VectorQuantize(**PLAIN, threshold_ema_dead_code=1)
    twin = copy.deepcopy(layer)
    torch.manual_seed(0)
    with torch.inference_mode():
        layer(rows(2, 9, 8))
    torch.manual_seed(0)
    twin(rows(2, 9, 8))
    assert_unchanged(layer, twin.state_dict())
    layer(rows(2, 9, 8).requires_grad_())[0].sum().backward()


@pytest.mark.parametrize("options", [{}, SEPARATE], ids=str)
def test_the_output_of_indices_is_that_of_forward_for_projected_images(options):
    layer = VectorQuantize(8, 16, **options | dict(codebook_dim=3), accept_image_fmap=True).eval()
    quantized, indices, _ = layer(rows(2, 8, 3, 4))
    torch.testing.assert_close(layer.get_output_from_indices(indices), quantized)


def test_an_image_is_read_where_it_is(monkeypatch):
    seen = []
    original = fastgen.nn.vector_quantize.vq_quantize

    def spy(x, *args, **kwargs):
        seen.append((x.data_ptr(), kwargs["dim"]))
        return original(x, *args, **kwargs)

    monkeypatch.setattr(fastgen.nn.vector_quantize, "vq_quantize", spy)
    x = rows(2, 8, 3, 4)
    VectorQuantize(**PLAIN, accept_image_fmap=True)(x)
    assert seen == [(x.data_ptr(), 1)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_out_as_it_went_in(dtype):
    layer = VectorQuantize(**PLAIN)
    x = rows(2, 9, 8).to(dtype).requires_grad_()
    quantized, indices, loss = layer(x)
    assert quantized.dtype == dtype and loss.dtype == torch.float32
    twin = VectorQuantize(**PLAIN)
    twin.load_state_dict(layer.state_dict())
    layer.eval(), twin.eval()
    assert torch.equal(layer(x)[1], twin(x.float())[1])
    (quantized.float().sum() + loss).backward()
    assert x.grad.dtype == dtype and x.grad.isfinite().all()


def test_autocast_changes_projections_only():
    layer = VectorQuantize(**PLAIN).eval()
    projected = VectorQuantize(**PLAIN, codebook_dim=4)
    x = rows(2, 9, 8).requires_grad_()
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_results(layer(x), expected)
        quantized, _, loss = projected(x)
    (quantized.float().sum() + loss).backward()
    assert x.grad.isfinite().all()


def test_a_set_codebook_stays_set():
    layer = VectorQuantize(**PLAIN, kmeans_init=True, decay=0.5)
    codes = rows(16, 8)
    layer.codebook = codes
    assert torch.equal(layer.codebook, codes) and layer._codebook.initted
    layer(codes)  # every code is chosen once, by itself
    torch.testing.assert_close(layer.codebook, codes)
    separate = VectorQuantize(**PLAIN, **SEPARATE)
    separate.codebook = rows(2, 16, 4)
    assert torch.equal(separate.codebook, rows(2, 16, 4))
    with pytest.raises(ValueError, match=r"codebook must be \(1, 16, 8\)"):
        layer.codebook = codes[:3]


# --- the start ---


def lloyd(x, means, iterations):
    for _ in range(iterations):
        nearest = torch.cdist(x, means).argmin(1)
        counts = torch.bincount(nearest, minlength=len(means))
        sums = torch.zeros_like(means).index_add_(0, nearest, x)
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
    return means, counts


@pytest.mark.parametrize("options", [{}, dict(accept_image_fmap=True), SEPARATE], ids=str)
def test_the_first_training_batch_starts_a_codebook_by_k_means(options):
    layer = VectorQuantize(8, 5, kmeans_init=True, kmeans_iters=30, **options)
    centers = 10 * rows(5, 8)
    x = (centers[torch.arange(60) % 5] + rows(60, 8, seed=1)).reshape(4, 15, 8)
    x = x.reshape(4, 3, 5, 8).permute(0, 3, 1, 2) if "accept_image_fmap" in options else x
    layer(x, freeze_codebook=False)
    codebook = layer._codebook
    assert codebook.initted
    parts = x.movedim(1, -1).reshape(-1, 8) if "accept_image_fmap" in options else x.reshape(-1, 8)
    parts = parts.split(4, 1) if "heads" in options else [parts]
    for part, codes, counts in zip(parts, codebook.embed, codebook.cluster_size, strict=True):
        # one EMA step later a converged k-means is where it was
        assert counts.sum().round() == 60
        means, _ = lloyd(part, codes, 1)
        torch.testing.assert_close(means, codes, rtol=1e-3, atol=1e-2)


def test_the_start_is_the_package_s_from_the_same_rows(monkeypatch):
    """The rows are a random choice; everything behind it is the package's."""
    from fastgen.nn.codebook_draw import RowDraw

    x = rows(40, 8)
    monkeypatch.setattr(RowDraw, "repeated_rows", lambda self, codes: self._rows[:, :codes])
    for options in ({}, dict(use_cosine_sim=True)):
        layer, peer = twins("VectorQuantize", **PLAIN, **options, kmeans_init=True, decay=0.9)
        peer._codebook.sample_fn = lambda samples, num: samples[:, :num]
        with torch.no_grad():
            assert_same_results(layer(x), peer(x))
        for name, value in peer.state_dict().items():
            torch.testing.assert_close(layer.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_start_outside_training_is_an_error_that_names_it():
    layer = VectorQuantize(**PLAIN, kmeans_init=True)
    with pytest.raises(RuntimeError, match="kmeans_init .* frozen"):
        layer(rows(9, 8), freeze_codebook=True)
    layer.eval()
    with pytest.raises(RuntimeError, match="kmeans_init .* in eval mode"):
        layer(rows(9, 8))
    started = VectorQuantize(**PLAIN)
    layer.load_state_dict(started.state_dict())
    assert_same_results(layer(rows(9, 8)), started.eval()(rows(9, 8)))


def test_init_embed_starts_once():
    layer = VectorQuantize(**PLAIN, kmeans_init=True)
    layer._codebook.init_embed_(rows(1, 40, 8))
    state = state_of(layer)
    assert state["_codebook.initted"] and state["_codebook.cluster_size"].sum() == 40
    layer._codebook.init_embed_(rows(1, 40, 8, seed=1))
    assert_unchanged(layer, state)


def test_a_start_from_half_precision_keeps_means_in_float32():
    x = rows(2000, 8).bfloat16()
    states = []
    for data in (x, x.float()):
        layer = VectorQuantize(8, 4, kmeans_init=True)
        torch.manual_seed(0)
        layer(data)
        states.append(layer.state_dict())
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value)


def test_fewer_rows_than_codes_start_a_codebook_from_repeated_rows():
    layer = VectorQuantize(**PLAIN, kmeans_init=True, ema_update=False)
    x = rows(3, 8)
    layer(x)
    assert layer._codebook.cluster_size.sum() == 3
    assert (torch.cdist(x, layer.codebook).amin(1) < 1e-3).all()


# --- dead codes ---


def revived(layer, x, **arguments):
    """Which row of x each code has become; -1 for none."""
    layer(x, **arguments)
    equal = (layer.codebook[:, None] == x.reshape(-1, 8)).all(2)
    return torch.where(equal.any(1), equal.long().argmax(1), -1)


def dying_layer(codes, threshold=2.0, **options):
    """All codes far from any row, but for code 0."""
    layer = VectorQuantize(8, codes, threshold_ema_dead_code=threshold, decay=0.5, **options)
    far = torch.full((codes, 8), 1e4) + rows(codes, 8)
    far[0] = 0
    layer.codebook = far
    return layer


def test_dead_codes_become_distinct_rows_and_start_afresh():
    layer = dying_layer(6)
    x = rows(50, 8)
    row = revived(layer, x)
    dead = row >= 0
    assert dead.tolist() == [False] + [True] * 5
    assert len(row[1:].unique()) == 5
    codebook = layer._codebook
    assert (codebook.cluster_size[0, 1:] == 2).all()
    torch.testing.assert_close(codebook.embed_avg[0, 1:], 2 * x[row[1:]])


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_with_more_dead_codes_than_rows_each_row_revives_one(size):
    layer = dying_layer(40)
    before = layer.codebook.clone()
    row = revived(layer, rows(size, 8))
    assert sorted(row[row >= 0].tolist()) == list(range(size))
    # which codes these are is a random choice, too
    again = dying_layer(40)
    again.codebook = before
    if size > 2:
        assert not torch.equal(revived(again, rows(size, 8)) >= 0, row >= 0)


def test_every_row_is_equally_likely_and_follows_manual_seed():
    chosen = torch.zeros(7, dtype=torch.int64)
    for seed in range(300):
        torch.manual_seed(seed)
        row = revived(dying_layer(4), rows(7, 8))[1:]
        chosen += torch.bincount(row, minlength=7)
        if seed < 3:
            torch.manual_seed(seed)
            assert torch.equal(revived(dying_layer(4), rows(7, 8))[1:], row)
    expected = 300 * 3 / 7
    # chi-square of 6 degrees of freedom, 99.99 %
    assert ((chosen - expected) ** 2 / expected).sum() < 28


def test_only_rows_that_are_kept_and_finite_revive():
    x = rows(2, 9, 8)
    x[0, 2] = float("nan")
    mask = torch.arange(9) < torch.tensor([[4], [2]])
    row = revived(dying_layer(30), x, mask=mask)
    assert sorted(row[row >= 0].tolist()) == [0, 1, 3, 9, 10]


def test_separate_heads_revive_from_their_own_rows():
    layer = VectorQuantize(8, 16, threshold_ema_dead_code=100, **SEPARATE)
    x = rows(50, 8)
    layer(x)
    for part, codes in zip(x.split(4, 1), layer.codebook, strict=True):
        assert (codes[:, None] == part).all(2).any(1).all()


def test_a_revived_code_lives_on():
    torch.manual_seed(3)
    layer = VectorQuantize(8, 64, threshold_ema_dead_code=0.5, decay=0.9)
    stuck = VectorQuantize(8, 64, decay=0.9)
    stuck.load_state_dict(layer.state_dict())
    for step in range(30):
        for module in (layer, stuck):
            module(5 * rows(256, 8, seed=step % 3))
    assert layer.usage > 0.9 and layer.usage > stuck.usage
    assert layer.perplexity > stuck.perplexity


# --- use, copies, compilation ---


def test_use_of_codes_comes_from_the_counts():
    layer = VectorQuantize(8, 4).eval()
    layer.codebook = torch.eye(4, 8)
    assert layer.counts.tolist() == [0] * 4  # before any forward
    assert layer.usage == 0 and layer.dead_codes == 4 and layer.perplexity == 1
    layer(torch.eye(4, 8)[[0, 0, 1, 1]])
    assert layer.counts.tolist() == [2, 2, 0, 0]
    assert layer.usage == 0.5 and layer.dead_codes == 2
    torch.testing.assert_close(layer.perplexity, torch.tensor(2.0))
    separate = VectorQuantize(**PLAIN, **SEPARATE)
    assert separate.counts.shape == (2, 16)
    separate(rows(2, 9, 8))
    assert separate.usage.shape == separate.dead_codes.shape == separate.perplexity.shape == (2,)


@pytest.mark.parametrize("options", [{}, SEPARATE, dict(accept_image_fmap=True)], ids=str)
def test_a_new_layer_can_be_inspected_and_traced(options):
    layer = VectorQuantize(**PLAIN, **options).eval()
    assert {"counts", "usage", "perplexity", "dead_codes"} <= dict(inspect.getmembers(layer)).keys()
    shape = (8, 3, 4) if "accept_image_fmap" in options else (9, 8)
    traced = torch.jit.trace(layer, rows(2, *shape))
    assert_same_results(traced(rows(3, *shape, seed=1)), layer(rows(3, *shape, seed=1)))


def test_numbers_of_numpy_are_numbers():
    sizes = dict(dim=np.int64(8), codebook_size=np.int32(16), codebook_dim=np.int64(4))
    layer = VectorQuantize(**sizes, heads=np.int64(2))
    assert type(layer.codebook_size) is int and layer(rows(2, 9, 8))[1].shape == (2, 9, 2)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
@pytest.mark.parametrize("options", [{}, SEPARATE], ids=str)
def test_indices_of_any_integer_dtype_are_the_same(options, dtype):
    layer = VectorQuantize(**PLAIN, **options).eval()
    x = rows(2, 9, 8)
    quantized, indices, _ = layer(x)
    assert torch.equal(layer.get_output_from_indices(indices.to(dtype)), quantized)
    loss = layer(x, indices=indices)[1]
    assert torch.equal(layer(x, indices=indices.to(dtype))[1], loss)


def test_a_code_that_has_faded_is_not_chosen_by_the_cosine():
    """Among unit vectors the nearest code has the largest cosine; a zero code would be nearer."""
    layer, peer = twins("VectorQuantize", dim=32, codebook_size=16, use_cosine_sim=True)
    for module in (layer, peer):
        module._codebook.embed[:, 3:6] *= torch.tensor([0.0, 1e-6, 1e-3])[:, None]
        module.eval()
    x = rows(200, 32)
    assert_same_results(layer(x), peer(x))
    assert not torch.isin(layer(x)[1], torch.tensor([3, 4, 5])).any()


@pytest.mark.parametrize("copier", ["deepcopy", "pickle", "save"])
def test_a_copy_goes_its_own_way(copier):
    layer = VectorQuantize(**PLAIN, kmeans_init=True)
    layer(rows(2, 9, 8).requires_grad_())
    if copier == "deepcopy":
        twin = copy.deepcopy(layer)
    elif copier == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    else:
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert_same_results(layer(rows(2, 9, 8)), twin(rows(2, 9, 8)))
    state = state_of(twin)
    layer(rows(2, 9, 8))
    assert_unchanged(twin, state)


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(use_cosine_sim=True) | SEPARATE,
        dict(orthogonal_reg_weight=1.0),
        GRADIENT,
        dict(kmeans_init=True),
    ],
    ids=str,
)
def test_a_training_step_compiles_into_one_graph(options):
    layer = VectorQuantize(**PLAIN, **options)
    if "kmeans_init" in options:
        layer(rows(2, 9, 8))
    twin = copy.deepcopy(layer)
    torch.compiler.reset()
    # splits forward from backward as Inductor does, and generates no code
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager_decomp_partition")
    for step in range(3):
        x = rows(2, 9, 8, seed=step).requires_grad_()
        y = x.detach().clone().requires_grad_()
        results, expected = compiled(x), twin(y)
        for quantized, _, loss in (results, expected):
            (quantized.square().sum() + loss).backward()
        assert_same_results(results, expected)
        torch.testing.assert_close(x.grad, y.grad)
        for ours, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value)
    assert layer.usage == twin.usage if layer.usage.dim() == 0 else True


def test_revival_compiles_into_the_same_graph():
    torch.compiler.reset()
    layer = dying_layer(6)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = rows(50, 8).requires_grad_()
    quantized, _, loss = compiled(x)
    (quantized.sum() + loss).backward()
    equal = (layer.codebook[:, None] == x).all(2)
    assert equal.any(1).tolist() == [False] + [True] * 5
    assert len(equal[1:].long().argmax(1).unique()) == 5


def test_a_training_step_reads_nothing_back_to_the_host():
    """On the meta device reading a value is an error."""
    for options in (dict(threshold_ema_dead_code=2), SEPARATE, GRADIENT):
        layer = VectorQuantize(**PLAIN, **options).to("meta")
        layer(torch.empty(2, 9, 8, device="meta", requires_grad=True))


def test_deterministic_sums_are_those_of_the_fast_ones_up_to_rounding():
    for options in ({}, SEPARATE, dict(accept_image_fmap=True)):
        layer = VectorQuantize(**PLAIN, **options, deterministic=True)
        twin = copy.deepcopy(layer)
        twin._codebook.deterministic = False
        for step in range(3):
            x = rows(2, 8, 3, 3, seed=step) if "accept_image_fmap" in options else rows(9, 8)
            x[0, 0] = float("nan")
            layer(x), twin(x)
        for name, value in twin.state_dict().items():
            torch.testing.assert_close(layer.state_dict()[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_sums_do_not_depend_on_the_order_of_rows(deterministic):
    x = rows(200, 8, dtype=torch.float64) * torch.logspace(-8, 8, 200)[:, None]
    layer = VectorQuantize(**PLAIN, deterministic=deterministic).double()
    twin = copy.deepcopy(layer)
    layer(x), twin(x.flip(0))
    # the data tells the two apart
    assert torch.equal(layer._codebook.embed_avg, twin._codebook.embed_avg) == deterministic


# --- bad input ---


@pytest.mark.parametrize(
    "error, match, options, arguments",
    [
        (ValueError, "x must have 8 values along axis 2", {}, dict(x=rows(2, 9, 7))),
        (
            ValueError,
            "x must have 8 values along axis 1",
            dict(channel_last=False),
            dict(x=rows(2, 9, 8)),
        ),
        (
            ValueError,
            r"x must be \(B, D, H, W\)",
            dict(accept_image_fmap=True),
            dict(x=rows(2, 9, 8)),
        ),
        (ValueError, r"x must be \(B, D, T, H, W\)", dict(accept_3d_fmap=True), dict(x=rows(2, 8))),
        (TypeError, "x must be a float tensor", {}, dict(x=torch.ones(2, 8, dtype=torch.int64))),
        (TypeError, "x must be a float tensor", {}, dict(x=[[0.0] * 8])),
        (ValueError, r"mask must be bool \(2, 9\)", {}, dict(mask=torch.ones(2, 9))),
        (ValueError, r"mask must be bool \(2, 9\)", {}, dict(mask=torch.ones(2, 8) > 0)),
        (ValueError, r"lens must be int \(B,\)", {}, dict(lens=torch.ones(3, dtype=torch.int64))),
        (ValueError, r"lens must be int \(B,\)", {}, dict(lens=torch.ones(2))),
        (TypeError, "lens must be a tensor, got list", {}, dict(lens=[1, 2])),
        (TypeError, "mask must be a tensor, got list", {}, dict(mask=[[True] * 9] * 2)),
        (ValueError, "lens must be None", {}, dict(lens=torch.ones(2), mask=torch.ones(2, 9) > 0)),
        (
            ValueError,
            r"indices must be \(2, 9\)",
            {},
            dict(indices=torch.zeros(2, 8, dtype=torch.int64)),
        ),
        (ValueError, "decay must be in", dict(decay=1.5), {}),
        (ValueError, "eps must be positive", dict(eps=0.0), {}),
        (ValueError, "codebook_size must be a positive int", dict(codebook_size=0), {}),
        (ValueError, "ema_update=False", dict(learnable_codebook=True), {}),
        (ValueError, "use_cosine_sim", GRADIENT | dict(use_cosine_sim=True), {}),
        (ValueError, "accept_3d_fmap", dict(accept_3d_fmap=True, accept_image_fmap=True), {}),
    ],
)
def test_what_does_not_fit_is_refused_in_words(error, match, options, arguments):
    with pytest.raises(error, match=rf"fastgen.nn.VectorQuantize: .*{match}"):
        VectorQuantize(**PLAIN | options)(**dict(x=rows(2, 9, 8)) | arguments)


def test_a_codebook_on_another_device_is_refused():
    with pytest.raises(ValueError, match="codebook must be on x's device"):
        VectorQuantize(**PLAIN)(torch.empty(2, 8, device="meta"))


@pytest.mark.parametrize("index", [-2, 16])
def test_decoding_refuses_indices_of_another_codebook(index):
    with pytest.raises(IndexError, match=rf"indices must be in -1 .. 15, got {index}"):
        VectorQuantize(**PLAIN).get_codes_from_indices(torch.tensor([[3, index]]))
    with pytest.raises(TypeError, match="int tensor"):
        VectorQuantize(**PLAIN).get_output_from_indices(torch.tensor([0.5]))
    with pytest.raises(ValueError, match="last axis of 2"):
        VectorQuantize(**PLAIN, **SEPARATE).get_codes_from_indices(torch.tensor([0, 1, 2]))

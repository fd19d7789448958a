import copy
import pickle

import numpy as np
import pytest
import torch
from vq_peer import (
    assert_same_results,
    assert_same_training,
    assert_unchanged,
    rows,
    state_of,
    twins,
)

from fastgen.nn import GroupedResidualVQ, ResidualVQ

PLAIN = dict(dim=8, codebook_size=16, num_quantizers=3)
GRADIENT = dict(learnable_codebook=True, ema_update=False)
IMAGE = dict(accept_image_fmap=True)


# --- the package's answers ---


@pytest.mark.parametrize(
    "options, arguments",
    [
        ({}, {}),
        (dict(codebook_dim=4), {}),
        (dict(codebook_size=(8, 16, 5), num_quantizers=None), {}),
        (dict(codebook_size=(8, 16, 5)), dict(return_all_codes=True)),
        (dict(shared_codebook=True), {}),
        (dict(shared_codebook=True, decay=0.99, codebook_dim=4), {}),
        (dict(quant_grad_frac=0.3), {}),
        (dict(quant_grad_frac=1.0, rotation_trick=False), {}),
        (dict(use_cosine_sim=True), {}),
        (GRADIENT, {}),
        (dict(quantize_dropout=True), dict(rand_quantize_dropout_fixed_seed=3)),
        (dict(quantize_dropout=True), dict(rand_quantize_dropout_fixed_seed=5)),
        (
            dict(quantize_dropout=True, quantize_dropout_multiple_of=2, num_quantizers=4),
            dict(rand_quantize_dropout_fixed_seed=0),
        ),
        (
            dict(quantize_dropout=True, quantize_dropout_cutoff_index=1, num_quantizers=4),
            dict(rand_quantize_dropout_fixed_seed=1, return_all_codes=True),
        ),
        ({}, dict(mask=rows(2, 9) > 0)),
        (dict(return_zeros_for_masked_padding=False), dict(mask=rows(2, 9) > 0)),
        ({}, dict(return_all_codes=True)),
        ({}, dict(freeze_codebook=True)),
    ],
    ids=str,
)
def test_trains_as_the_package(options, arguments):
    assert_same_training(*twins("ResidualVQ", **PLAIN | options), rows(2, 9, 8), **arguments)


@pytest.mark.parametrize(
    "options, arguments",
    [
        ({}, {}),
        (dict(codebook_dim=3), {}),
        ({}, dict(mask=rows(2, 9) > 0)),
        ({}, dict(return_all_codes=True)),
    ],
    ids=str,
)
def test_groups_train_as_the_package_s(options, arguments):
    options = PLAIN | dict(groups=2) | options
    layer, peer = twins("GroupedResidualVQ", **options)
    assert_same_training(layer, peer, rows(2, 9, 8), **arguments)
    torch.testing.assert_close(layer.codebooks, peer.codebooks)


@pytest.mark.parametrize("options", [{}, dict(shared_codebook=True), dict(codebook_dim=4)], ids=str)
def test_checkpoints_load_both_ways(options):
    layer, peer = twins("ResidualVQ", **PLAIN | options)
    peer(rows(2, 9, 8))
    layer.load_state_dict(peer.state_dict(), strict=True)
    layer(rows(2, 9, 8, seed=1))
    peer.load_state_dict(layer.state_dict(), strict=True)
    layer.eval(), peer.eval()
    assert_same_results(layer(rows(3, 5, 8)), peer(rows(3, 5, 8)))


@pytest.mark.parametrize(
    "options", [{}, dict(codebook_dim=4), dict(codebook_size=(8, 16, 5))], ids=str
)
def test_decodes_as_the_package(options):
    layer, peer = twins("ResidualVQ", **PLAIN | options, quantize_dropout=True)
    layer.eval(), peer.eval()
    quantized, indices, _ = layer(rows(2, 9, 8))
    for given in (indices, indices[..., :2], indices.index_fill(-1, torch.tensor([2]), -1)):
        torch.testing.assert_close(
            layer.get_codes_from_indices(given), peer.get_codes_from_indices(given)
        )
        torch.testing.assert_close(
            layer.get_output_from_indices(given), peer.get_output_from_indices(given)
        )
    torch.testing.assert_close(layer.get_output_from_indices(indices), quantized)
    ours, theirs = layer.codebooks, peer.codebooks
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "option, value",
    [
        ("implicit_neural_codebook", True),
        ("mlp_kwargs", dict(depth=2)),
        ("beam_size", 2),
        ("eval_beam_size", 2),
        ("beam_score_quantizer_weights", [1.0, 2.0, 3.0]),
        ("diveq", True),
    ],
)
def test_an_option_without_a_form_here_is_refused_by_name(option, value):
    with pytest.raises(NotImplementedError, match=option):
        ResidualVQ(**PLAIN, **{option: value})


@pytest.mark.parametrize("argument, value", [("beam_size", 2), ("sample_codebook_temp", 0.5)])
def test_an_argument_without_a_form_here_is_refused_by_name(argument, value):
    with pytest.raises(NotImplementedError, match=argument):
        ResidualVQ(**PLAIN)(rows(2, 9, 8), **{argument: value})
    if argument == "sample_codebook_temp":
        with pytest.raises(NotImplementedError, match=argument):
            GroupedResidualVQ(**PLAIN, groups=2)(rows(2, 9, 8), **{argument: value})


# --- where the package fails, or answers otherwise ---


@pytest.mark.parametrize("options", [{}, dict(codebook_dim=4)], ids=str)
@pytest.mark.parametrize("groups", [None, 2])
def test_images_keep_their_shape(options, groups):
    """(B, D, H, W) to (B, D, H, W) and (B, H, W, Q), as the same rows in a sequence."""
    grouped = {} if groups is None else dict(groups=groups)
    cls = ResidualVQ if groups is None else GroupedResidualVQ
    layer = cls(**PLAIN, **options, **IMAGE, **grouped)
    flat = cls(**PLAIN, **options, **grouped)
    flat.load_state_dict(layer.state_dict())
    x = rows(2, 8, 3, 4)
    quantized, indices, losses, codes = layer(x, return_all_codes=True)
    expected = flat(x.movedim(1, -1).flatten(1, 2), return_all_codes=True)
    assert quantized.shape == x.shape and indices.shape[-4:] == (2, 3, 4, 3)
    torch.testing.assert_close(quantized.flatten(2).mT, expected[0])
    assert torch.equal(indices.flatten(-3, -2), expected[1])
    torch.testing.assert_close(losses, expected[2])
    for ours, theirs in zip(codes, expected[3], strict=True):
        torch.testing.assert_close(ours.reshape(theirs.shape), theirs)
    for name, value in flat.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value)
    layer.eval()
    quantized, indices, _ = layer(x)
    torch.testing.assert_close(layer.get_output_from_indices(indices), quantized)


def test_channels_first_sequences():
    layer = ResidualVQ(**PLAIN, channel_last=False).eval()
    flat = ResidualVQ(**PLAIN).eval()
    flat.load_state_dict(layer.state_dict())
    x = rows(2, 9, 8)
    quantized, indices, _ = layer(x.mT)
    torch.testing.assert_close(quantized.mT, flat(x)[0])
    assert torch.equal(indices, flat(x)[1])
    torch.testing.assert_close(layer.get_output_from_indices(indices), quantized)


def test_cross_entropy_is_the_sum_of_the_stages():
    for options in ({}, dict(use_cosine_sim=True)):
        layer = ResidualVQ(**PLAIN, **options).eval()
        x = rows(2, 9, 8)
        quantized, indices, _ = layer(x)
        target = torch.randint(0, 16, indices.shape)
        residual, expected = x, 0
        for stage, vq in enumerate(layer.layers):
            expected = expected + vq(residual, indices=target[..., stage])[1]
            residual = residual - vq(residual)[0]
        out, loss = layer(x, indices=target)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(out, quantized)
        torch.testing.assert_close(layer(x, indices=list(target.unbind(-1)))[1], expected)
        with pytest.raises(ValueError, match="indices must be those of all stages"):
            layer(x, indices=target.index_fill(-1, torch.tensor([1]), -1))
    grouped = GroupedResidualVQ(**PLAIN, groups=2).eval()
    indices = grouped(x)[1]
    expected = sum(
        rvq(part, indices=i)[1]
        for rvq, part, i in zip(grouped.rvqs, x.chunk(2, -1), indices, strict=True)
    )
    torch.testing.assert_close(grouped(x, indices=indices)[1], expected)


def test_residuals_stay_in_float32_between_stages():
    """With 8 stages the rest is far below bfloat16's resolution of x."""
    layer = ResidualVQ(dim=8, codebook_size=64, num_quantizers=8, kmeans_init=True)
    x = rows(1, 512, 8).bfloat16()
    layer(x)
    layer.eval()
    quantized, indices, _ = layer(x)
    assert quantized.dtype == torch.bfloat16
    assert torch.equal(indices, layer(x.float())[1])
    assert torch.equal(quantized, layer(x.float())[0].bfloat16())


def test_float64_is_computed_in_float64():
    layer = ResidualVQ(**PLAIN).double().eval()
    x = rows(2, 9, 8, dtype=torch.float64)
    quantized, indices, _ = layer(x)
    residual = x
    for stage, codes in enumerate(layer.codebooks):
        nearest = torch.cdist(residual, codes).argmin(-1)
        assert torch.equal(indices[..., stage], nearest)
        residual = residual - codes[nearest]
    assert quantized.dtype == torch.float64
    torch.testing.assert_close(quantized, x - residual)


def test_dropped_stages_are_left_alone():
    layer = ResidualVQ(**PLAIN, quantize_dropout=True)
    last = set()
    for _ in range(30):
        state = state_of(layer)
        _, indices, losses = layer(rows(2, 9, 8))
        used = int((indices[0, 0] >= 0).sum())
        last.add(used)
        assert ((indices >= 0) == (torch.arange(3) < used)).all()
        assert ((losses > 0) == (torch.arange(3) < used)).all()
        for name, value in layer.layers[used:].state_dict().items():
            index, rest = name.split(".", 1)
            assert torch.equal(value, state[f"layers.{int(index) + used}.{rest}"])
    assert last == {1, 2, 3}
    layer.eval()
    assert (layer(rows(2, 9, 8))[1] >= 0).all()


def test_dropout_follows_manual_seed_and_is_the_same_for_all_groups():
    layer = GroupedResidualVQ(
        dim=8, codebook_size=4, num_quantizers=6, groups=2, quantize_dropout=True
    )
    seen = []
    for seed in (1, 2, 3, 4, 1):
        torch.manual_seed(seed)
        used = (layer(rows(2, 9, 8))[1] >= 0).sum(-1)
        assert (used == used.flatten()[0]).all()
        seen.append(int(used.flatten()[0]))
    assert seen[0] == seen[-1] and len(set(seen)) > 1


def test_an_empty_batch_costs_nothing_and_changes_nothing():
    for options in ({}, dict(shared_codebook=True, threshold_ema_dead_code=2), IMAGE):
        layer = ResidualVQ(**PLAIN, **options)
        state = state_of(layer)
        x = torch.zeros((0, 8, 3, 4) if options is IMAGE else (2, 0, 8), requires_grad=True)
        quantized, _, losses = layer(x)
        (quantized.sum() + losses.sum()).backward()
        assert (losses == 0).all() and quantized.shape == x.grad.shape == x.shape
        assert_unchanged(layer, state)


@pytest.mark.parametrize("options", [{}, dict(shared_codebook=True), dict(codebook_dim=4)], ids=str)
def test_eval_mode_and_frozen_codebooks_write_nothing(options):
    layer = ResidualVQ(**PLAIN | options, threshold_ema_dead_code=3)
    state = state_of(layer)
    layer(rows(2, 9, 8), freeze_codebook=True)
    layer.eval()
    assert (layer(rows(2, 9, 8))[2] == 0).all()
    assert_unchanged(layer, state)


def test_a_row_that_is_not_finite_moves_no_code():
    for options in ({}, dict(threshold_ema_dead_code=2), dict(shared_codebook=True)):
        layer = ResidualVQ(**PLAIN, **options)
        x = rows(2, 9, 8)
        x[1, 2, 3] = float("nan")
        quantized = layer(x)[0]
        assert all(value.isfinite().all() for value in layer.state_dict().values())
        assert quantized[1, 2].isnan().all() and quantized.isnan().sum() == 8


def test_a_shared_codebook_revives_from_the_residuals_of_all_stages():
    layer = ResidualVQ(**PLAIN, shared_codebook=True, threshold_ema_dead_code=1000)
    layer(rows(2, 9, 8))
    codebook = layer.layers[0]._codebook
    assert all(vq._codebook is codebook for vq in layer.layers)
    assert (codebook.cluster_size == 1000).all()


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_goes_its_own_way(copier):
    layer = ResidualVQ(**PLAIN, shared_codebook=True)
    layer(rows(2, 9, 8).requires_grad_())
    twin = copier(layer)
    assert twin.layers[0]._codebook is twin.layers[2]._codebook
    assert_same_results(layer(rows(2, 9, 8)), twin(rows(2, 9, 8)))
    state = state_of(twin)
    layer(rows(2, 9, 8))
    assert_unchanged(twin, state)


def test_use_of_codes_is_that_of_each_stage():
    layer = ResidualVQ(**PLAIN | dict(codebook_size=(8, 16, 5)))
    indices = layer(rows(2, 9, 8))[1]
    used = [len(i.unique()) / k for i, k in zip(indices.unbind(-1), (8, 16, 5), strict=True)]
    torch.testing.assert_close(layer.usage, torch.tensor(used))
    assert layer.dead_codes.tolist() == [
        round(k * (1 - u)) for k, u in zip((8, 16, 5), used, strict=True)
    ]
    assert (layer.perplexity >= 1).all() and layer.perplexity.shape == (3,)
    grouped = GroupedResidualVQ(**PLAIN, groups=2)
    grouped(rows(2, 9, 8))
    assert grouped.usage.shape == grouped.dead_codes.shape == grouped.perplexity.shape == (2, 3)


def test_a_dropped_stage_chose_nothing():
    layer = ResidualVQ(**PLAIN, quantize_dropout=True)
    for seed in range(6):
        used = stages_of(layer, seed)
        layer(rows(2, 9, 8), rand_quantize_dropout_fixed_seed=seed)
        assert (layer.usage > 0).tolist() == [q < used for q in range(3)]
        assert all(not vq.counts.any() for vq in layer.layers[used:])
        assert layer.dead_codes[used:].tolist() == [16] * (3 - used)


def test_numbers_of_numpy_are_numbers():
    sizes = dict(codebook_size=np.int64(16), num_quantizers=np.int32(3))
    layer = ResidualVQ(dim=np.int64(8), **sizes)
    assert layer.codebook_sizes == (16,) * 3 and layer(rows(2, 9, 8))[1].shape == (2, 9, 3)


@pytest.mark.parametrize(
    "options", [{}, dict(shared_codebook=True), dict(quantize_dropout=True)], ids=str
)
def test_a_training_step_compiles_into_one_graph(options):
    layer = ResidualVQ(**PLAIN, **options, threshold_ema_dead_code=0)
    twin = copy.deepcopy(layer)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager_decomp_partition")
    for step in range(3):
        x = rows(2, 9, 8, seed=step).requires_grad_()
        y = x.detach().clone().requires_grad_()
        results = compiled(x)
        used = int((results[1][0, 0] >= 0).sum())
        # dropout draws its own numbers inside the graph: the package's seed of that many stages
        seed = next(s for s in range(99) if stages_of(twin, s) == used)
        expected = twin(y, rand_quantize_dropout_fixed_seed=seed)
        for quantized, _, losses in (results, expected):
            (quantized.square().sum() + losses.sum()).backward()
        assert_same_results(results, expected)
        torch.testing.assert_close(x.grad, y.grad)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value)


def test_a_given_seed_of_the_dropout_compiles_into_one_graph():
    layer = ResidualVQ(**PLAIN, quantize_dropout=True)
    twin = copy.deepcopy(layer)
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    used = set()
    for seed in range(12):  # more than torch.compile would make graphs of
        x = rows(2, 9, 8, seed=seed)
        results = compiled(x, rand_quantize_dropout_fixed_seed=seed)
        assert_same_results(results, twin(x, rand_quantize_dropout_fixed_seed=seed))
        torch.testing.assert_close(layer.usage, twin.usage)
        used.add(int((results[1][0, 0] >= 0).sum()))
    assert used == {1, 2, 3}


def stages_of(layer, seed):
    return layer._last_stage(seed) + 1 if layer.quantize_dropout else layer.num_quantizers


def test_a_training_step_reads_nothing_back_to_the_host():
    """On the meta device reading a value is an error."""
    x = torch.empty(2, 9, 8, device="meta", requires_grad=True)
    for options in ({}, dict(quantize_dropout=True), dict(shared_codebook=True)):
        layer = ResidualVQ(**PLAIN, **options, threshold_ema_dead_code=1).to("meta")
        layer(x, return_all_codes=True)
    GroupedResidualVQ(**PLAIN, groups=2, quantize_dropout=True).to("meta")(x)


# --- bad input ---


@pytest.mark.parametrize(
    "match, options",
    [
        ("heads must be 1", dict(heads=2)),
        ("num_quantizers must be given", dict(num_quantizers=None)),
        ("codebook_size must be an int or 3", dict(codebook_size=(8, 8))),
        ("codebook_size must be one", dict(codebook_size=(8, 8, 4), shared_codebook=True)),
        ("quantize_dropout_cutoff_index must be in", dict(quantize_dropout_cutoff_index=3)),
    ],
)
def test_options_that_do_not_fit_are_refused(match, options):
    with pytest.raises(ValueError, match=f"fastgen.nn.ResidualVQ: {match}"):
        ResidualVQ(**PLAIN | options)


def test_input_that_does_not_fit_is_refused():
    layer, grouped = ResidualVQ(**PLAIN), GroupedResidualVQ(**PLAIN, groups=2)
    for vq in (layer, grouped):
        with pytest.raises(ValueError, match=f"fastgen.nn.{type(vq).__name__}: x must have 8"):
            vq(rows(2, 9, 7))
        with pytest.raises(TypeError, match=f"fastgen.nn.{type(vq).__name__}: x must be a float"):
            vq(torch.ones(2, 9, 8, dtype=torch.int64))
        with pytest.raises(ValueError, match="mask must be bool"):
            vq(rows(2, 9, 8), mask=torch.ones(2, 8) > 0)
    with pytest.raises(ValueError, match=r"x must be \(B, D, H, W\)"):
        ResidualVQ(**PLAIN, **IMAGE)(rows(2, 8, 9))
    with pytest.raises(ValueError, match="groups must divide dim=8"):
        GroupedResidualVQ(**PLAIN, groups=3)
    with pytest.raises(ValueError, match="indices must be those of 2 groups"):
        grouped(rows(2, 9, 8), indices=torch.zeros(3, 2, 9, 3, dtype=torch.int64))


def test_decoding_refuses_indices_of_another_codebook():
    layer = ResidualVQ(**PLAIN | dict(codebook_size=(8, 16, 5)))
    with pytest.raises(IndexError, match="indices must be in -1 .. 4, got 5"):
        layer.get_codes_from_indices(torch.tensor([[0, 0, 5]]))
    with pytest.raises(ValueError, match="indices must have a last axis of 3"):
        layer.get_codes_from_indices(torch.tensor([[0, 0]]))
    with pytest.raises(TypeError, match="indices must be an int tensor"):
        layer.get_codes_from_indices(torch.zeros(1, 3))

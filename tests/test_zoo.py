"""Every model of the zoo through the compiler, against its own full forward."""

import contextlib
import copy
from functools import cache
from unittest import mock

import pytest
import torch
from exactness import assert_exact
from torch import nn
from zoo import CASES, HALF, REFUSED

from fastgen import NotCausalError, UnsupportedModelError, compile_sampler
from fastgen.likelihoods import Categorical
from fastgen.sampling import naive_sample
from fastgen.sampling.arguments import ranks_of, sliced

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def compile_case(case, fn, condition=None, **kwargs):
    return compile_sampler(
        fn,
        case.shape,
        case.likelihood,
        order=case.order,
        condition=case.conditions(1) if condition is None else condition,
        params=case.params,
        **kwargs,
    )


@cache
def compiled(case):
    fn = case.model()
    return fn, compile_case(case, fn)


@contextlib.contextmanager
def float64():
    """Models that say .float() mean the default dtype here."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(before)


def in_double(condition):
    if isinstance(condition, dict):
        return {name: in_double(value) for name, value in condition.items()}
    if isinstance(condition, tuple):
        return tuple(map(in_double, condition))
    return (
        condition.double()
        if torch.is_tensor(condition) and condition.is_floating_point()
        else (condition)
    )


def assert_near(values, expected, tolerance):
    assert values.shape == expected.shape
    finite = expected.isfinite()
    assert torch.equal(values[~finite].double(), expected[~finite].double())
    error = (values.double() - expected.double())[finite].abs().max().item()
    assert error <= tolerance * max(1.0, expected[finite].abs().max().item())


@every_case
def test_it_is_causal_by_perturbation(case):
    fn, codes, condition = case.model(), case.codes(1, 1), case.conditions(1)
    ranks = ranks_of(case.order, case.shape, case.likelihood.coupled)
    with torch.no_grad():
        before = case.call(fn, codes, condition).flatten(3)
        for rank in ranks.unique():
            later = (ranks >= rank).view(1, *case.shape)
            changed = torch.where(later, case.codes(1, 2), codes)
            after = case.call(fn, changed, condition).flatten(3)
            early = (ranks[: after.shape[2]] <= rank).expand_as(after)
            torch.testing.assert_close(after[early], before[early], rtol=1e-5, atol=1e-6)


@every_case
@torch.no_grad()
def test_values_are_those_of_the_full_forward(case):
    fn, sampler = compiled(case)
    for n in (1, 2, 5):
        codes, condition = case.codes(n, n), case.conditions(n, n)
        values = sampler.parameters_at(codes, condition)
        assert_near(values, case.call(fn, codes, condition), 5e-5)


@every_case
@torch.no_grad()
def test_values_in_float64(case):
    with float64():
        fn = case.model()
        fn = fn.double() if isinstance(fn, nn.Module) else fn
        codes, condition = case.codes(2, 7), in_double(case.conditions(2, 7))
        expected = case.call(fn, codes, condition)
        assert expected.dtype == torch.float64
        example = in_double(case.conditions(1))
        sampler = compile_case(case, fn, example, dtype=torch.float64)
        values = sampler.parameters_at(codes, condition)
    assert values.dtype == torch.float64
    assert_near(values, expected, 1e-10)


@every_case
@torch.no_grad()
def test_samples_are_the_naive_samplers(case):
    fn, sampler = compiled(case)
    n, condition = 3, case.conditions(3, 1)
    uniforms = torch.rand(n, case.likelihood.uniforms, *case.shape)
    codes = sampler.sample(n, condition=condition, uniforms=uniforms)
    naive = naive_sample(
        lambda *given: case.call(fn, *given),
        case.shape,
        case.likelihood,
        n,
        order=case.order,
        condition=condition,
        uniforms=uniforms,
    )
    params = case.call(fn, codes, condition)
    assert_exact(case.likelihood, params, uniforms, codes, naive)
    expected = case.likelihood.log_prob(params, codes).flatten(1).sum(1)
    torch.testing.assert_close(
        sampler.log_prob(codes, condition).double(), expected.double(), rtol=1e-4, atol=1e-4
    )


@every_case
def test_one_image_at_a_time_is_the_same_bit_for_bit(case):
    _, sampler = compiled(case)
    condition = case.conditions(3, 2)
    codes = sampler.sample(3, condition=condition, seed=5)
    for i in range(3):
        one = None if condition is None else sliced(condition, slice(i, i + 1))
        assert torch.equal(sampler.sample(1, condition=one, seed=5, first_index=i)[0], codes[i])


@every_case
def test_a_second_thread_changes_no_bit(case):
    _, sampler = compiled(case)
    codes, condition = case.codes(1, 6), case.conditions(1, 2)
    values = sampler.parameters_at(codes, condition=condition)
    torch.set_num_threads(2)
    try:
        assert torch.equal(sampler.parameters_at(codes, condition=condition), values)
    finally:
        torch.set_num_threads(1)


@every_case
@torch.no_grad()
def test_what_is_known_is_kept_and_seen(case):
    fn, sampler = compiled(case)
    condition = case.conditions(2, 3)
    known, mask = case.codes(2, 4), torch.rand(2, *case.shape) < 0.4
    if case.likelihood.coupled:
        mask[:] = mask[:, :1]
    uniforms = torch.rand(2, case.likelihood.uniforms, *case.shape)
    given = dict(condition=condition, uniforms=uniforms, known=known, known_mask=mask)
    codes = sampler.sample(2, **given)
    assert torch.equal(codes[mask], known[mask])
    naive = naive_sample(
        lambda *args: case.call(fn, *args),
        case.shape,
        case.likelihood,
        2,
        order=case.order,
        **given,
    )
    params = case.call(fn, codes, condition)
    assert_exact(case.likelihood, params, uniforms, codes, naive, drawn=~mask)


@pytest.mark.parametrize("case", HALF, ids=str)
@torch.no_grad()
def test_half_precision_is_computed_in_float32(case):
    fn = case.model()
    sampler = compile_case(case, fn)
    codes = case.codes(3)
    values = sampler.parameters_at(codes)
    assert values.dtype == torch.float32
    assert_near(values, copy.deepcopy(fn).float()(codes), 5e-5)
    assert_near(values, fn(codes), 0.05)


# one of every style, as it is initialised: no seed may be special
FRESH = CASES[::6]


@pytest.mark.parametrize("case", FRESH, ids=str)
@torch.no_grad()
def test_fresh_initialisations(case):
    for seed in range(3):
        torch.manual_seed(seed)
        fn = case.build().eval()
        sampler = compile_case(case, fn)
        codes, condition = case.codes(2, seed), case.conditions(2, seed)
        values = sampler.parameters_at(codes, condition)
        assert_near(values, case.call(fn, codes, condition), 5e-5)


@pytest.mark.parametrize("share", [0.05, 0.7])
@pytest.mark.parametrize("case", FRESH, ids=str)
@torch.no_grad()
def test_zeros_among_the_weights_do_no_harm(case, share):
    fn = case.model()
    for name, parameter in fn.named_parameters():
        if parameter.requires_grad and "weight_v" not in name:  # its norm is divided by
            parameter[torch.rand(parameter.shape) < share] = 0
    sampler = compile_case(case, fn)
    codes, condition = case.codes(2), case.conditions(2)
    assert_near(sampler.parameters_at(codes, condition), case.call(fn, codes, condition), 5e-5)


@pytest.mark.parametrize(
    "build, named", [case[1:] for case in REFUSED.CASES], ids=[case[0] for case in REFUSED.CASES]
)
def test_what_cannot_be_compiled_is_refused(build, named):
    with pytest.raises((UnsupportedModelError, NotCausalError, ValueError)) as refusal:
        compile_sampler(build(), REFUSED.SHAPE, Categorical(REFUSED.LEVELS))
    assert named in str(refusal.value)


@pytest.mark.parametrize("fn", [fn for _, fn in REFUSED.SHAPES], ids=[n for n, _ in REFUSED.SHAPES])
def test_outputs_of_a_wrong_shape_are_refused(fn):
    with pytest.raises(ValueError, match="fn must return"):
        compile_sampler(fn, REFUSED.SHAPE, Categorical(REFUSED.LEVELS))

"""Every model of the zoo through the compiler, against its own full forward."""

import pytest
import torch
from zoo import CASES

from fastgen.sampling import naive_sample
from fastgen.sampling.arguments import ranks_of

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
def test_the_naive_sampler_draws_from_it(case):
    codes = (
        naive_sample(
            lambda *args: case.call(fn, *args),
            case.shape,
            case.likelihood,
            2,
            order=case.order,
            condition=case.conditions(2),
            seed=0,
        )
        if (fn := case.model())
        else None
    )
    assert codes.shape == (2, *case.shape)


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

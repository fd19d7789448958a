import pytest
import torch
import vq_ranks
from two_processes import two_processes

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="PyTorch without torch.distributed"
)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What each of two gloo processes found."""
    return two_processes(vq_ranks.__file__, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def one_rank():
    """The same on the joined batch."""
    everything = slice(None)
    return {
        case: vq_ranks.train(vq_ranks.build(case), case, 0, everything) for case in vq_ranks.CASES
    }


cases = pytest.mark.parametrize("case", [c for c in vq_ranks.CASES if c not in vq_ranks.OWN])
splits = pytest.mark.parametrize("split", vq_ranks.SPLITS)


@cases
@splits
def test_both_ranks_hold_the_same_bits(two_ranks, case, split):
    first, second = (results[case, split]["state"] for results in two_ranks)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@cases
@splits
def test_two_ranks_train_as_one_on_the_joined_batch(two_ranks, one_rank, case, split):
    state = two_ranks[0][case, split]["state"]
    for name, value in one_rank[case]["state"].items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6, msg=name)
    steps = zip(
        *(r[case, split]["indices"] for r in two_ranks), one_rank[case]["indices"], strict=True
    )
    for first, second, joined in steps:
        assert torch.equal(torch.cat((first, second), -2 if joined.dim() > 1 else 0), joined)


@splits
def test_fixed_point_gives_the_bits_of_one_rank(two_ranks, one_rank, split):
    state = two_ranks[0]["fixed point", split]["state"]
    for name, value in one_rank["fixed point"]["state"].items():
        assert torch.equal(state[name], value), name


def test_a_step_is_one_all_reduce_and_one_more_for_rows_that_revive(two_ranks):
    for results in two_ranks:
        for split in vq_ranks.SPLITS:
            assert results["averages", split]["calls"] == vq_ranks.STEPS
            assert results["revival", split]["calls"] == 2 * vq_ranks.STEPS


def test_each_rank_may_start_alone(two_ranks):
    for split in ("even", "uneven"):
        first, second = (results["own k-means", split]["state"] for results in two_ranks)
        assert first["_codebook.initted"] and second["_codebook.initted"]
        assert not torch.equal(first["_codebook.embed"], second["_codebook.embed"])


def test_nothing_is_sent_in_eval_mode_or_apart(two_ranks):
    for results in two_ranks:
        assert results["calls", "alone"] == 0
    first, second = (results["alone", "even"]["state"] for results in two_ranks)
    assert not torch.equal(first["_codebook.embed"], second["_codebook.embed"])


def test_distributed_data_parallel_starts_and_keeps_ranks_equal(two_ranks):
    first, second = (results["parallel"] for results in two_ranks)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name

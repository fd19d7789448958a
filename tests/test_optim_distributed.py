import optim_ranks
import pytest
import torch
from two_processes import two_processes

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="PyTorch without torch.distributed"
)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What each of two gloo processes found."""
    return two_processes(optim_ranks.__file__, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", optim_ranks.CASES)
def test_sharded_parameters_train_as_whole_ones(two_ranks, case):
    net = optim_ranks.critic()
    alone = optim_ranks.whole(net, optim_ranks.train(net, case))
    for results in two_ranks:
        assert results[case].keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(results[case][name], value, rtol=1e-5, atol=1e-6, msg=name)
    params = [v for (_, key), v in two_ranks[0][case].items() if key == "param"]
    assert max(p.abs().max() for p in params) <= torch.tensor(optim_ranks.CLIP)


def test_a_gradient_of_another_placement_is_summed_first(two_ranks):
    for results in two_ranks:
        given = results["given"]
        assert torch.equal(given["square_avg"], torch.full((5, 3), 3.0).square_().mul_(1 - 0.99))
        at = (given["local"].abs() == 0.5).float().mean()
        assert given["saturation"] == at
    assert torch.equal(*(results["given"]["param"] for results in two_ranks))

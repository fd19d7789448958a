"""What every test gets: a fixed seed, and NaN in every tensor that torch.empty hands out, so that
output a kernel forgets to write cannot pass."""

import pytest
import torch

# Tests are small: on a busy machine OpenMP's barriers cost many times what a second thread gains.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded_and_poisoned():
    torch.set_num_threads(1)  # whatever the test before has left
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills fresh memory with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request):
    torch.set_num_threads(request.param)
    return request.param


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than a few seconds; still part of CI")

import pytest
import torch


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def accelerator(request):
    """Where a test runs: on a GPU under `-m gpu`, and on the CPU, so that it is known to run, in every suite."""
    return torch.device(request.param)

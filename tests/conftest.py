"""Settings that hold for every test: the same numbers on every run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "globalcnn",
    deadline=None,  # a shared machine is slow at times
    derandomize=True,  # a failure here is a failure everywhere
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("globalcnn")


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Each test starts from the same global seed, and what it draws does not reach the next."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield

"""Settings and fixtures of all tests."""

import os

import pytest
import torch
from hypothesis import settings

if "OMP_NUM_THREADS" not in os.environ:  # the matrices here are small, and the processes of xdist share the cores
    torch.set_num_threads(1)
settings.register_profile("mnvi", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("mnvi")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def settings_of_torch():
    """Programs change settings of the whole process; no test may see those of another."""
    threads = torch.get_num_threads()
    yield
    torch.set_flush_denormal(False)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)

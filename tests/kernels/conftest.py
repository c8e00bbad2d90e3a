"""Where the kernel tests run: on the GPU, or under Triton's interpreter in a process of their own.

The interpreter is chosen by TRITON_INTERPRET=1 before any kernel module is imported, and an access
out of bounds kills its process. So on a machine without a GPU the tests marked `triton` are left
out of the ordinary run, and test_interpreted.py runs them all in one child process. Marked `gpu`
as well, a test is too large for the interpreter, or asks what only the device can show.
"""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if INTERPRETED:
    _path = Path(__file__).with_name("interpreter_bf16.py")
    _spec = importlib.util.spec_from_file_location("interpreter_bf16", _path)
    assert _spec is not None
    assert _spec.loader is not None
    _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
    _module.install()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "triton: runs Triton kernels, on a GPU or interpreted")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    native = torch.cuda.is_available() and not INTERPRETED
    here = Path(__file__).parent
    kept, dropped = [], []
    for item in items:
        ours = here in item.path.parents and item.get_closest_marker("triton")
        (dropped if ours and not (native or INTERPRETED) else kept).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@pytest.fixture
def device() -> torch.device:
    """Where the kernels under test find their tensors."""
    return torch.device("cpu" if INTERPRETED else "cuda")

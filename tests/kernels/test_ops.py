"""Which operations a device gets, and that all implementations offer the same."""

import inspect
import subprocess
import sys
from typing import Any

import pytest
import torch

from quire.kernels import reference
from quire.kernels.cpu.ops import CpuOps, own_ops
from quire.kernels.ops import KernelsUnavailable, Ops, select

NAMES = [name for name, value in vars(Ops).items() if callable(value) and name[0] != "_"]


def _parameters(function: Any) -> list[tuple[str, Any]]:
    signature = inspect.signature(function)
    return [(p.name, p.default) for p in signature.parameters.values() if p.name != "self"]


def test_the_cpu_gets_its_own_products_or_the_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_ops()
    assert select(torch.device("cpu")) is (own or reference)
    monkeypatch.setattr("quire.kernels.cpu.ops.own_ops", lambda: None)
    assert select(torch.device("cpu")) is reference


@pytest.mark.parametrize("name", NAMES)
def test_every_implementation_takes_the_same_arguments(name: str) -> None:
    pytest.importorskip("triton")
    from quire.kernels.triton_ops import TritonOps

    wanted = _parameters(getattr(Ops, name))
    assert _parameters(getattr(reference, name)) == wanted
    assert _parameters(getattr(TritonOps, name)) == wanted
    if name in vars(CpuOps):
        assert _parameters(getattr(CpuOps, name)) == wanted


def test_an_unknown_device_is_refused_by_name() -> None:
    with pytest.raises(KernelsUnavailable, match="meta"):
        select(torch.device("meta"))


def test_dependent_launch_on_the_cpu_is_refused() -> None:
    with pytest.raises(KernelsUnavailable, match="pdl"):
        select(torch.device("cpu"), pdl=True)


def test_the_cpu_needs_no_triton_and_cuda_says_that_it_does() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from quire.kernels.ops import KernelsUnavailable, select\n"
        "select(torch.device('cpu'))\n"
        "try:\n"
        "    select(torch.device('cuda'))\n"
        "except KernelsUnavailable as error:\n"
        "    assert 'triton' in str(error)\n"
        "else:\n"
        "    raise SystemExit(1)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""What launches kernels is built quickly, by whichever Triton builds it."""

from types import SimpleNamespace
from typing import Any

import pytest

nvidia = pytest.importorskip("triton.backends.nvidia.driver")


@pytest.mark.parametrize("knows_flags", [True, False])
def test_a_launcher_is_built_without_much_optimization(
    knows_flags: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from quire.kernels import offline

    seen: list[Any] = []

    def with_flags(src: str, ccflags: list[str] | None = None) -> None:
        seen.append((src, ccflags))

    def without(src: str) -> None:
        seen.append((src, None))

    build = with_flags if knows_flags else without
    monkeypatch.setattr(nvidia, "make_launcher", None, raising=False)
    monkeypatch.setattr(nvidia, "compile_module_from_src", build, raising=False)
    monkeypatch.setattr(
        nvidia, "CudaLauncher", lambda src, _data: nvidia.compile_module_from_src(src)
    )
    offline.compile_launcher(SimpleNamespace(src="code", metadata=None))
    assert seen == [("code", ["-Og"] if knows_flags else None)]
    assert nvidia.compile_module_from_src is build
    monkeypatch.delattr(nvidia, "make_launcher")
    offline.compile_launcher(SimpleNamespace(src="code", metadata=None))
    assert len(seen) == 1

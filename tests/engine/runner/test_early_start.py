"""What is begun before the imports, and that nothing depends on it."""

import ctypes
import sys
from typing import NoReturn

import pytest

from quire.engine.runner import early_start

NO_TEXT = r"import os; os.write(1, b'\xff')"


def test_the_digest_of_the_compiler_is_found_once_where_its_version_tells_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = pytest.importorskip("triton.runtime.cache")
    from quire.kernels import offline

    monkeypatch.setattr(early_start, "_digesting", [])
    alone: list[bool] = []
    monkeypatch.setattr(
        cache, "triton_key", lambda: alone.append(offline._digesting.locked()), raising=False
    )
    early_start.digest_compiler()
    assert alone == [True]
    monkeypatch.delattr(cache, "triton_key")
    early_start.digest_compiler()


def test_nothing_depends_on_a_early_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(name: str) -> NoReturn:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    early_start._start_driver(0)
    monkeypatch.setitem(sys.modules, "quire.kernels.offline", None)  # as without Triton
    early_start._digest_compiler()


@pytest.mark.parametrize(("device", "retained"), [(None, []), (0, [0]), (3, [3])])
def test_the_context_of_the_device_that_will_be_used_is_made(
    device: int | None, retained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []

    class Driver:
        def cuInit(self, flags: int) -> int:
            calls.append(("init", flags))
            return 0

        def cuDevicePrimaryCtxRetain(self, context: object, index: int) -> int:
            del context
            calls.append(("retain", index))
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda _name: Driver())
    early_start._start_driver(device)
    assert calls == [("init", 0), *(("retain", index) for index in retained)]


@pytest.mark.parametrize(
    ("answer", "taken"),
    [
        ("print(version + 'abc', end='')", True),
        ("print('?')", False),
        (NO_TEXT, False),
        ("", False),
    ],
)
def test_a_digest_is_taken_from_the_process_that_has_found_it(
    answer: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is no digest of this version is found here instead."""
    cache = pytest.importorskip("triton.runtime.cache")
    version = pytest.importorskip("triton").__version__
    monkeypatch.setattr(cache, "triton_key", lambda: "found here", raising=False)
    early_start.start_digest((sys.executable, "-c", f"version = {version!r}\n{answer}"))
    early_start.digest_compiler()
    assert cache.triton_key() == (version + "abc" if taken else "found here")
    assert not early_start._digesting


@pytest.mark.long
def test_the_process_finds_the_digest_that_triton_finds() -> None:
    cache = pytest.importorskip("triton.runtime.cache")
    early_start.start_digest()
    assert early_start._found() == getattr(cache, "triton_key", str)()


def test_a_process_that_cannot_be_started_is_done_without() -> None:
    early_start.start_digest(("/nowhere",))
    assert early_start._found() == ""

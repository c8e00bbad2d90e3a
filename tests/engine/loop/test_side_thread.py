"""The thread beside the engine's: it does what it is asked to and ends with its owner."""

import gc
import threading
import weakref

import pytest

from quire.engine.loop.side_thread import SideThread

PATIENCE = 20.0


class Work:
    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def __call__(self) -> None:
        self.threads.append(threading.current_thread())


def test_one_thread_does_all_it_is_asked_to_keeps_nothing_of_it_and_ends() -> None:
    helper, work = SideThread(), Work()
    for times in range(1, 4):
        helper.begin(work)()
        assert len(work.threads) == times
    (thread,) = set(work.threads)
    assert thread is not threading.current_thread()
    held = weakref.ref(work)
    del work
    assert held() is None
    del helper
    gc.collect()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_without_a_thread_nothing_is_done_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    helper, work = SideThread(), Work()

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    helper.begin(work)()
    assert not work.threads
    monkeypatch.undo()
    helper.begin(work)()
    assert work.threads

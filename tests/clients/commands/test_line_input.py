"""A line that is read, and Ctrl-C between two sleeps of the line editor."""

import builtins
import signal
import sys
import threading
from pathlib import Path

import pytest

from quire.clients.commands.line_input import read_line

PATIENCE = 60.0  # seconds after which nobody has noticed


def test_a_line_is_read_and_the_end_of_input_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "input", lambda prompt: f"{prompt}typed")
    assert read_line("> ") == "> typed"

    def ended(_prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr(builtins, "input", ended)
    with pytest.raises(EOFError):
        read_line("> ")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(sys.platform != "linux", reason="sees a thread's sleep in /proc")
def test_ctrl_c_that_ends_no_sleep_is_noticed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal reaches another thread, so the sleep goes on: as if it had come before it."""
    main, gate = threading.get_native_id(), threading.Lock()
    gate.acquire()
    unnoticed = threading.Timer(PATIENCE, gate.release)

    def interrupt() -> None:
        state = Path(f"/proc/self/task/{main}/stat")
        while state.read_text().rpartition(")")[2].split()[0] != "S":
            pass
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    def read(_prompt: str) -> str:
        threading.Thread(target=interrupt).start()
        gate.acquire()
        return "the sleep ended by the test's patience"

    monkeypatch.setattr(builtins, "input", read)
    unnoticed.start()
    with pytest.raises(KeyboardInterrupt):
        read_line("> ")
    assert unnoticed.is_alive()
    unnoticed.cancel()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1

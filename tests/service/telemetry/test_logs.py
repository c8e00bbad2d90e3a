"""Lines of the log: their form, and that whoever logs never waits for whoever reads."""

import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support import programs
from support.patience import PATIENCE
from support.server_process import QUIRE, environment, process

from quire.service.telemetry import logs, standard_streams
from quire.service.telemetry.logs import JsonFormatter, QueuedHandler, TextFormatter

NASTY = "eve\n2026-01-01T00:00:00.000Z INFO request ended \x1b[2J\x9b\u2028\u202e\ud800 a=b"


def record(message: str = "request ended", *args: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("quire.service", logging.INFO, "", 0, message, args, None)
    made.fields = fields
    return made


def test_a_text_line_holds_time_level_message_and_fields() -> None:
    line = TextFormatter().format(record("request %s", "ended", client="key:a", tokens=3))
    assert line.split(" ", 1)[1] == "INFO request ended client=key:a tokens=3"


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_no_value_begins_a_line_or_moves_a_cursor(formatter: logging.Formatter) -> None:
    for made in (record(client=NASTY), record("called by %s", NASTY)):
        lines = formatter.format(made).splitlines()
        assert all(line.startswith("    ") for line in lines[1:])
        assert all(character.isprintable() for line in lines for character in line)
    assert len(formatter.format(record(client=NASTY)).splitlines()) == 1


def test_a_value_with_a_space_or_an_equals_sign_is_quoted() -> None:
    line = TextFormatter().format(record(client='a" finish=stop'))
    assert line.endswith(r'client="a\" finish=stop"')


def test_a_json_line_reads_back_with_its_exception() -> None:
    made = record(client="ä\n")
    try:
        raise ValueError("of\nthe \x1b test")
    except ValueError:
        made.exc_info = sys.exc_info()
    line = JsonFormatter().format(made)
    assert "\n" not in line and "\x1b" not in line and "ä" in line
    entry = json.loads(line)
    assert entry["level"] == "info" and entry["message"] == "request ended"
    assert "ValueError: of\nthe" in entry["exception"]


class Stuck:
    """Writes that wait until they are let go."""

    def __init__(self) -> None:
        self.waits, self.goes_on = threading.Event(), threading.Event()
        self.text = ""

    def __call__(self, data: bytes) -> None:
        self.waits.set()
        assert self.goes_on.wait(PATIENCE)
        self.text += data.decode()


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    made = Stuck()
    yield made
    made.goes_on.set()


def handler_of(write: Any) -> QueuedHandler:
    made = QueuedHandler(write)
    made.setFormatter(TextFormatter())
    return made


def test_a_stuck_reader_holds_up_nobody_and_what_is_lost_is_counted(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_RECORDS", 5)
    monkeypatch.setattr(logs, "WRITE_SECONDS", 0)
    handler = handler_of(stuck)
    handler.handle(record("the first"))
    assert stuck.waits.wait(PATIENCE)
    for number in range(8):
        handler.handle(record(f"number {number}"))
    handler.flush(0)
    assert handler.dropped == 3
    stuck.goes_on.set()
    handler.flush(60)
    lines = stuck.text.splitlines()
    assert "the first" in lines[0]
    assert all(line.endswith(f"number {n}") for n, line in enumerate(lines[1:6]))
    assert lines[-1].endswith("lines lost lost=3") and len(lines) == 7
    handler.handle(record("again"))
    handler.flush(60)
    assert stuck.text.splitlines()[-1].endswith("again")


def test_a_process_that_stands_still_in_a_flush_has_time_left_to_write(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Frozen(threading.Event):
        """Its time is up at once, as of one who was stopped meanwhile; later it is waited for."""

        def wait(self, timeout: float | None = None) -> bool:
            if not stuck.goes_on.is_set():
                stuck.goes_on.set()
                return False
            return super().wait(timeout)

    monkeypatch.setattr(logs, "WRITE_SECONDS", 0)
    handler = handler_of(stuck)
    handler.handle(record("the last"))
    assert stuck.waits.wait(PATIENCE)
    monkeypatch.setattr(logs.threading, "Event", Frozen)
    handler.flush(PATIENCE)
    assert "the last" in stuck.text


def test_long_values_are_bounded_together(stuck: Stuck, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "WRITE_SECONDS", 0)
    monkeypatch.setattr(logs, "MAX_CHARACTERS", 10_000)
    handler = handler_of(stuck)
    handler.handle(record("the first"))
    assert stuck.waits.wait(PATIENCE)
    for _ in range(10):
        handler.handle(record(prompt="x" * 3000))
    assert handler.dropped == 7
    stuck.goes_on.set()
    handler.flush(60)
    handler.handle(record(prompt="y" * 3000))
    handler.flush(60)
    assert handler.dropped == 7 and "y" * 3000 in stuck.text


def test_logging_in_the_midst_of_logging_is_no_deadlock(stuck: Stuck) -> None:
    """As a signal's handler may, on the thread that is in the queue just now."""
    stuck.goes_on.set()
    handler = handler_of(stuck)

    class Nested(logging.LogRecord):
        def __getattribute__(self, name: str) -> Any:
            if name == "fields":
                handler.handle(record("nested"))
            return super().__getattribute__(name)

    handler.handle(Nested("quire", logging.INFO, "", 0, "outer", (), None))
    handler.flush(60)
    assert "nested" in stuck.text and "outer" in stuck.text


CHILD = """
import sys, threading, warnings
from quire.service.telemetry import logs
logs.set_up("json", "info")
print("printed", file=sys.stderr)
warnings.warn("a warning")
def fails():
    raise ValueError("in a thread")
thread = threading.Thread(target=fails)
thread.start()
thread.join()
sys.stderr.write("half ")
sys.stderr.write("a line\\n")
logs.flush()
"""


def test_every_line_of_standard_error_has_the_format() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, timeout=PATIENCE
    )
    messages = [json.loads(line)["message"] for line in done.stderr.splitlines()]
    assert messages[0] == "printed" and messages[-1] == "half a line"
    assert any("a warning" in message for message in messages)
    assert "ValueError: in a thread" in messages


def full_pipe() -> tuple[int, int]:
    """Read and write end of a pipe that takes nothing any more."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    return read, write


@pytest.mark.parametrize("place", [pytest.param("off", marks=pytest.mark.long), "on"])
def test_a_stuck_pipe_stops_neither_the_server_nor_its_end(place: str) -> None:
    read, write = full_pipe()
    words = ["serve", "--port", "0", "--num-blocks", "64", "--engine-process", place]
    server = programs.start(
        [QUIRE, *words, "--drain-seconds", "0.1"],
        stdout=subprocess.PIPE,
        stderr=write,
        env=environment(),
    )
    os.close(write)
    try:
        assert server.stdout is not None
        assert server.stdout.readline().startswith(b"serving ")
        server.send_signal(signal.SIGUSR1)  # stacks, which the pipe does not take
        server.send_signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0
    finally:
        server.kill()
        os.close(read)


def test_a_pipe_is_never_waited_for_and_its_other_users_are_not_touched() -> None:
    read, write = full_pipe()
    ours = os.dup(write)
    standard_streams.never_wait(ours)
    assert os.get_blocking(write) and not os.get_blocking(ours)
    with pytest.raises(BlockingIOError):
        os.write(ours, b"x")
    for descriptor in (read, write, ours):
        os.close(descriptor)


def test_lines_are_written_whole_so_that_no_other_process_writes_into_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[bytes] = []

    def write(_descriptor: int, data: memoryview) -> int:
        written.append(bytes(data))
        return len(data)

    lines = [b"x" * size + b"\n" for size in (1000, 3000, 10_000, 90, *[300] * 40)]
    monkeypatch.setattr(os, "write", write)
    logs.write_error(b"".join(lines))
    monkeypatch.undo()
    assert b"".join(written) == b"".join(lines) and len(written) < 9
    for piece in written:
        assert piece.endswith(b"\n") and (len(piece) <= select.PIPE_BUF or piece == lines[2])


@pytest.mark.parametrize("place", [pytest.param("off", marks=pytest.mark.long), "on"])
def test_all_that_a_server_says_is_json_where_that_is_asked_for(place: str) -> None:
    with process("--log-format", "json", "--engine-process", place) as server:
        server.address()
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
    entries = [json.loads(line) for line in server.errors]
    said = {entry["message"] for entry in entries}
    assert "draining" in said
    assert any("100%" in message for message in said)  # progress

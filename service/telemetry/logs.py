"""Structured logs on standard error, as text or JSON, one record a line.

Invariant: a record's own values stand in `extra={"fields": {...}}` and are written as fields;
nothing that the service logs holds an output's text, nor a prompt's unless `log_prompts` is set.
Whatever a value holds, it begins no line and moves no cursor: control characters are escaped, and
the further lines of a trace are indented.

Whoever logs never waits: records go into a queue without locks (a signal's handler may log in the
midst of anything), and a thread of its own writes them in order, within WRITE_SECONDS, many at a
time. What the queue cannot hold while standard error is stuck is dropped and counted; the next line
that can be written says how many. What else is written to sys.stderr goes the same way.
"""

import io
import json
import logging
import os
import queue
import re
import select
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TextIO

from quire.service.telemetry import standard_streams

WRITE_SECONDS = 0.1
FLUSH_SECONDS = 0.5  # that standard error gets at the end
MAX_RECORDS = 10_000
MAX_CHARACTERS = 16 << 20  # of the values in the queue
_GRPC = "grpc._cython.cygrpc"  # its logger
_WRITES_TO_NOBODY = "ExecuteBatchError"  # of gRPC's core; also what a call that has ended was sent
_RECORD = 256  # characters that a record counts beside its values
_BATCH = 1000  # records written at once
_LOOKS = 10  # within the time of a flush

# Controls, line ends of other scripts, marks that turn the direction of writing, half characters.
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ud800-\udfff]"
)
_QUOTED = re.compile(r'[\s"=]')

Write = Callable[[bytes], None]


def escaped(text: str) -> str:
    """The text on one line, with nothing in it that a terminal or a reader of lines obeys."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class TextFormatter(logging.Formatter):
    """2026-01-31T12:00:00.123Z INFO request ended request_id=… …"""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        rest = "".join(f" {key}={_shown(value)}" for key, value in fields.items())
        first, *further = record.getMessage().split("\n")
        lines = [f"{_timestamp(record)} {record.levelname} {escaped(first)}{rest}"]
        if record.exc_info:
            further += self.formatException(record.exc_info).split("\n")
        return "\n".join([*lines, *(f"    {escaped(line)}" for line in further)])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the fields, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry = {**entry, **getattr(record, "fields", {}), **entry}  # those stay what they are
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return escaped(json.dumps(entry, ensure_ascii=False, default=str))


def _shown(value: object) -> str:
    text = escaped(str(value))
    return json.dumps(text, ensure_ascii=False) if _QUOTED.search(text) else text


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


class QueuedHandler(logging.Handler):
    """Hands records to a thread, which formats and writes them. `dropped` counts lost ones."""

    def __init__(self, write: Write) -> None:
        """write: of whole lines; may wait for as long as it likes."""
        super().__init__()
        self.dropped = 0
        self._write = write
        self._queue: queue.SimpleQueue[logging.LogRecord | threading.Event] = queue.SimpleQueue()
        self._put = self._taken = 0  # characters; each counter has one writer
        self._told = 0  # of those dropped
        self._writer: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        size = _size(record)
        full = self._put - self._taken + size > MAX_CHARACTERS
        if full or self._queue.qsize() >= MAX_RECORDS:
            self.dropped += 1
            return
        self._put += size
        self._queue.put(record)
        if self._writer is None:
            self._writer = threading.Thread(target=self._run, name="quire-log", daemon=True)
            self._writer.start()

    def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Return when all is written that was logged before, or after so many seconds: counted in
        looks, so that a process that stood still meanwhile has time left to write."""
        if self._writer is not None and self._writer is not threading.current_thread():
            reached = threading.Event()
            self._queue.put(reached)
            any(reached.wait(seconds / _LOOKS) for _ in range(_LOOKS))

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            if isinstance(first, logging.LogRecord) and first.levelno < logging.WARNING:
                time.sleep(WRITE_SECONDS)
            self._write_batch(first)

    def _write_batch(self, first: logging.LogRecord | threading.Event) -> None:
        batch = [first]
        while len(batch) < _BATCH and not self._queue.empty():
            batch.append(self._queue.get())
        lines, dropped = [], self.dropped
        for item in batch:
            if isinstance(item, logging.LogRecord):
                self._taken += _size(item)
                lines.append(self._line(item))
        if dropped > self._told:
            lines.append(self._line(_loss(dropped - self._told)))
            self._told = dropped
        if lines:
            self._write("".join(lines).encode("utf-8", "replace"))
        for item in batch:
            if isinstance(item, threading.Event):
                item.set()

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record) + "\n"
        except Exception:
            self.handleError(record)
            return ""


def _size(record: logging.LogRecord) -> int:
    values = (record.msg, *_args(record), *getattr(record, "fields", {}).values())
    return _RECORD + sum(len(value) for value in values if isinstance(value, str))


def _args(record: logging.LogRecord) -> tuple[object, ...]:
    return record.args if isinstance(record.args, tuple) else ()


def _loss(count: int) -> logging.LogRecord:
    record = logging.LogRecord(
        "quire.service", logging.WARNING, "", 0, "standard error was stuck: lines lost", (), None
    )
    record.fields = {"lost": count}
    return record


class Lines(io.TextIOBase):
    """Replaces sys.stderr: each line becomes a record of the log."""

    def __init__(self) -> None:
        super().__init__()
        self._rest = ""
        self._log = logging.getLogger("quire.stderr")

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Returns the number of characters, all of which are taken."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                self._log.info("%s", line.rstrip())
        return len(text)


def write_error(data: bytes) -> None:
    """Write to standard error, however long that takes; a reader that is gone is ignored.

    The text is written in pieces of whole lines that a pipe takes whole or not at all. The engine's
    process writes there too, and if the reader is slow, half a line would be followed by one of its
    lines.
    """
    ready = select.poll()
    ready.register(standard_streams.ERROR, select.POLLOUT)
    view, at = memoryview(data), 0
    try:
        while at < len(data):
            end = data.rfind(b"\n", at, at + select.PIPE_BUF) + 1 or data.find(b"\n", at) + 1
            try:
                at += os.write(standard_streams.ERROR, view[at : end or len(data)])
            except BlockingIOError:
                ready.poll()
    except OSError:
        return


_handler: QueuedHandler | None = None
_terminal: TextIO | None = None


def set_up(log_format: str, level: str) -> None:
    """Send all of Quire's logs to standard error; other libraries' from warnings on."""
    global _handler, _terminal
    standard_streams.never_wait()
    # No line names a thread, a process or a line of code: they need not be found out.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    _handler = QueuedHandler(write_error)
    _handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [_handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("quire").setLevel(level.upper())
    logging.captureWarnings(True)
    logging.getLogger(_GRPC).addFilter(is_no_strangers_doing)
    _terminal = sys.stderr if log_format == "text" and sys.stderr.isatty() else None
    sys.stderr = Lines()


def is_no_strangers_doing(record: logging.LogRecord) -> bool:
    """gRPC writes a trace for each value of metadata that is no text, any number a call; and an
    error with its trace for each client that leaves while an answer waits to be written."""
    kind = record.exc_info[0] if record.exc_info else None
    left = kind is not None and kind.__name__ == _WRITES_TO_NOBODY
    return not (left or str(record.msg).startswith("Invalid encoding"))


def terminal() -> TextIO:
    """Where progress is shown: the terminal if there is one, else the log."""
    return sys.stderr if _terminal is None else _terminal


def dropped() -> int:
    """Lines lost so far because standard error was stuck."""
    return 0 if _handler is None else _handler.dropped


def flush() -> None:
    """Write what was queued, if standard error takes it soon. Called at the end."""
    if _handler is not None:
        _handler.flush()


def give_back() -> None:
    """Flush, and restore sys.stderr for the last messages."""
    flush()
    sys.stderr = sys.__stderr__ or sys.stderr

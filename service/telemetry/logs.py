"""Structured logs on standard error, as text or JSON, one line a record.

Invariant: a record's own values stand in `extra={"fields": {...}}` and are written as fields;
nothing that the service logs holds an output's text, nor a prompt's unless `log_prompts` is set.
Lines are written in order; those below warning within `WRITE_SECONDS`, many at a time, by a thread
of their own: a write for every call would hold up the event loop under load.
"""

import json
import logging
import sys
import threading
import time
from collections import deque
from typing import Any, TextIO

WRITE_SECONDS = 0.1


class TextFormatter(logging.Formatter):
    """2026-01-31T12:00:00.123Z INFO request ended request_id=… …"""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        rest = "".join(f" {key}={value}" for key, value in fields.items())
        line = f"{_timestamp(record)} {record.levelname} {record.getMessage()}{rest}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the fields, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def _timestamp(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


class BatchHandler(logging.Handler):
    """Gathers records, for a thread to write; warnings and worse are written at once, with all that
    came before them."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._records: deque[logging.LogRecord] = deque()
        self._writing = threading.Lock()
        self._filled = threading.Event()
        self._writer: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)
        if record.levelno >= logging.WARNING:
            self.flush()
        elif not self._filled.is_set():
            self._start()
            self._filled.set()

    def flush(self) -> None:
        """Write what was gathered. A stream that is gone takes the lines with it."""
        with self._writing:
            gathered = [self._records.popleft() for _ in range(len(self._records))]
            try:
                self._stream.write("".join(map(self._line, gathered)))
                self._stream.flush()
            except (OSError, ValueError):
                return

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record) + "\n"
        except Exception:
            self.handleError(record)
            return ""

    def _start(self) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="quire-log", daemon=True)
            self._writer.start()

    def _write(self) -> None:
        while True:
            self._filled.wait()
            time.sleep(WRITE_SECONDS)
            self._filled.clear()
            self.flush()


def set_up(log_format: str, level: str) -> None:
    """Send all of Quire's logs to standard error; other libraries' from warnings on."""
    # No line names a thread, a process or a line of code: they need not be found out.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = BatchHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("quire").setLevel(level.upper())


def flush() -> None:
    """Write what was gathered: before anything else is said on standard error, and at the end."""
    for handler in logging.getLogger().handlers:
        handler.flush()

"""The file of results: what has been answered, so that a second run asks for the rest alone.

Invariant: a result is one line, written by one write and at its end a line break; a line without
one was cut short by the end of a run, and is cut off. So whatever ends a run, each line that is
there is whole, and none is there twice. A run's end costs no result that was written; the machine's
end may cost those of the last second, which are then asked for again (SYNC_SECONDS).
"""

import json
import os
from collections.abc import Container
from pathlib import Path
from typing import Any

from quire.clients.arguments import refuse_what_is_no_file, show
from quire.clients.errors import OptionError

try:
    import fcntl
except ImportError:  # a system without such locks: two runs are not kept apart there
    fcntl = None  # type: ignore[assignment]

ID = "batch_req_"  # and more: of each result
_BEGIN = json.dumps({"id": ID}).encode().removesuffix(b'"}')
_FOREIGN = "is no result of a batch; name another file"
SYNC_SECONDS = 1.0  # what was written is on the disk after so long


class ResultFile:
    """One run's, and no other's as long as it lives."""

    def __init__(self, path: Path, known: Container[str]) -> None:
        """Takes up a file that is there; known: the custom_ids that it may hold. Raises OptionError
        for what is no file of results, or another batch's."""
        refuse_what_is_no_file(path)
        self.path = path
        self.done: set[str] = set()
        self.cut = 0  # bytes of a last line that was not whole
        self.errors = 0  # lines without an answer
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise OptionError(f"{path}: {error.strerror}") from None
        try:
            self._take_up(known)
        except BaseException:
            self._file.close()
            raise

    def add(self, custom_id: str, result: dict[str, Any]) -> None:
        """Write one line. Raises OSError where there is no room for it."""
        assert custom_id not in self.done
        raw = json.dumps(result, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        while raw:
            raw = raw[self._file.write(raw) :]
        self.done.add(custom_id)
        self.errors += _is_error(result)

    def sync(self) -> None:
        """Returns when all that was written is on the disk. Blocks; any thread."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """The last line is on the disk, and others may take the file up."""
        try:
            self.sync()
        finally:
            self._file.close()

    # ------------------------------------------------------------ what is there already

    def _take_up(self, known: Container[str]) -> None:
        if fcntl is not None:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise OptionError(f"{self.path}: another run writes to it") from None
        whole = 0
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if not raw.endswith(b"\n"):
                    if not _is_begun(raw):
                        raise OptionError(f"{self.path}, line {number}: {_FOREIGN}")
                    self.cut = len(raw)
                    break
                self._read(number, raw, known)
                whole += len(raw)
        if self.cut:
            self._file.truncate(whole)
            self.sync()

    def _read(self, number: int, raw: bytes, known: Container[str]) -> None:
        where = f"{self.path}, line {number}"
        try:
            result = json.loads(raw)
            custom_id = result["custom_id"]
            if not isinstance(custom_id, str) or not {"response", "error"} <= result.keys():
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise OptionError(f"{where}: {_FOREIGN}") from None
        if custom_id not in known:
            raise OptionError(f"{where}: {show(custom_id)} is not among the requests")
        if custom_id in self.done:
            raise OptionError(f"{where}: {show(custom_id)} is there twice")
        self.done.add(custom_id)
        self.errors += _is_error(result)


def _is_begun(raw: bytes) -> bool:
    """Whether it may be the beginning of a line of ours; zeros are what a file's end may hold when
    the machine has stopped."""
    return raw[: len(_BEGIN)] == _BEGIN[: len(raw)] or not raw.strip(b"\0")


def _is_error(result: dict[str, Any]) -> bool:
    response = result["response"]
    return not isinstance(response, dict) or response.get("status_code") != 200

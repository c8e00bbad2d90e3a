"""Opening files that a user names.

Invariant: this never blocks. Opening a pipe waits for a writer, a device may be endless, and a file
may be larger than memory: each is refused with an OSError, as a missing file is.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 32 << 20  # of a file that is read whole


def open_plain(path: Path) -> BinaryIO:
    """Open for reading. Raises OSError."""
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(0, "is not a file")
    return file


def read_whole(path: Path, most: int = MAX_BYTES) -> bytes:
    """The file's content. Raises OSError."""
    with open_plain(path) as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise OSError(0, f"more than {most} bytes")
    return raw


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)

"""Opening files that a user names.

Invariant: nobody waits. Opening a pipe waits for whoever writes to it, a device may have no end,
and a file may be larger than the memory: each is refused by an OSError, as what is not there.
"""

import os
import stat
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 32 << 20  # of a file that is read whole


def open_plain(path: Path) -> BinaryIO:
    """To read. Raises OSError."""
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 - the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(0, "is not a file")
    return file


def read_whole(path: Path, most: int = MAX_BYTES) -> bytes:
    """What a file holds. Raises OSError."""
    with open_plain(path) as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise OSError(0, f"more than {most} bytes")
    return raw


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)

"""A command whose standard streams are closed, or take nothing more."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import programs
from support.patience import PATIENCE

CLOSED = """
import os, sys
from quire.clients import standard_streams
kept = os.dup(1)
for number, name in enumerate(("stdin", "stdout", "stderr")):
    os.close(number)
    setattr(sys, name, None)
standard_streams.fill()
print("a key's line")
print("the key", file=sys.stderr, flush=True)
os.write(kept, f"{sys.stdin.read()!r} {os.dup(0) > 2}".encode())
"""


def test_what_is_closed_is_nothing_and_lends_its_number_to_nobody() -> None:
    words = [sys.executable, "-c", CLOSED]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert (done.stdout, done.stderr) == ("'' True", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_has_no_room_is_one_line() -> None:
    words = [sys.executable, "-m", "quire.clients.cli", "generate", "--help"]
    with Path("/dev/full").open("w") as full:
        process = programs.start(words, stdout=full, stderr=subprocess.PIPE, text=True)
    _, told = process.communicate(timeout=PATIENCE)
    why = os.strerror(errno.ENOSPC)
    assert (process.wait(), told) == (1, f"quire: the output cannot be written: {why}\n")

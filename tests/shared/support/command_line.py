"""The command line as a process of its own."""

import os
import subprocess
import sys

from support import programs
from support.patience import PATIENCE


def environment(**extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("QUIRE_")}
    return {**kept, "COLUMNS": "200", **extra}


def quire(*words: str, stdin: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
    return programs.run(
        [sys.executable, "-m", "quire.clients.cli", *words],
        given=stdin,
        timeout=PATIENCE,
        env=environment(**extra),
    )


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The error line, checked to be just that."""
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("quire: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr

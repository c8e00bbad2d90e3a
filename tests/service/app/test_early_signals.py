"""Signals that come before `quire serve` has imported what it needs."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.patience import PATIENCE
from support.server_process import QUIRE, environment

# Stands in for the first thing that takes long to import: waits until it is told to go on.
STAND_IN = """
import sys
print("importing", flush=True)
sys.stdin.readline()
sys.path.remove({folder!r})
del sys.modules["typer"]
import typer
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_during_the_imports_ends_nothing(number: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(STAND_IN.format(folder=str(tmp_path)))
    process = subprocess.Popen(
        [QUIRE, "serve", "--print-config"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(PYTHONPATH=os.pathsep.join((str(tmp_path), os.getenv("PYTHONPATH", "")))),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    out, errors = process.communicate("go on\n", timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert "[service]" in out and "Traceback" not in errors

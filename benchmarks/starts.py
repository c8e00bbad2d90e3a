"""How long a server takes from exec to `serving`, and what it spends that time on.

Invariant: each start is a process of its own. Of a first start no kernel is there: it gets a folder
for compiled kernels that is empty, and goes with it. Python's bytecode is there in any case, as pip
leaves it at an installation: where it is missing (an image that keeps Python from writing it), it
is made beforehand, in a temporary folder; without it each process compiles some 900 modules.
"""

import importlib.util
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Seconds, from empty caches and from warm ones, with 16 cores on an H200.
GOALS = {"0.6B": (8.0, 3.5), "8B": (9.0, 4.5), "32B": (20.0, None)}
_LINE = re.compile(r"\bstart: (.+)$", re.MULTILINE)
_BARE = """
import torch
x = torch.ones(16, 16, device="cuda" if torch.cuda.is_available() else "cpu")
(x @ x).sum().item()
"""
_STAGE = re.compile(r"([a-z][a-z -]*) (\d+\.\d+) s\b")
_folders: list["tempfile.TemporaryDirectory[str]"] = []  # of bytecode; ends with this process


@dataclass(frozen=True)
class Start:
    """One start. stages: seconds by name, as the engine logs them; `around`: what is left of the
    whole, which is Python's own start, imports, and the service's."""

    seconds: float
    stages: Mapping[str, float]


def starts(directory: Path, runs: int, *, first: bool) -> list[Start]:
    """After one that does not count, so many starts: with no kernel compiled, or with all."""
    if not first:
        return [start(directory, {}) for _ in range(runs + 1)][1:]
    found = []
    for _ in range(runs + 1):
        with tempfile.TemporaryDirectory() as empty:
            found.append(start(directory, {"TRITON_CACHE_DIR": empty}))
    return found[1:]


def bare() -> float:
    """Seconds of a process that imports PyTorch, as every start has to, and multiplies once on the
    card, where there is one: a start's floor."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", _BARE], check=True, env=_environment())
    return time.perf_counter() - begin


@cache
def _environment() -> dict[str, str]:
    """In which a process finds PyTorch's bytecode, from its second run on if that is missing."""
    found = importlib.util.find_spec("torch")
    assert found is not None and found.origin is not None
    if Path(importlib.util.cache_from_source(found.origin)).exists():
        return dict(os.environ)
    _folders.append(tempfile.TemporaryDirectory())
    environment = os.environ | {"PYTHONPYCACHEPREFIX": _folders[0].name}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def start(directory: Path, environment: Mapping[str, str]) -> Start:
    """One start of a server over a model's directory, on ports of its own."""
    command = [sys.executable, "-m", "quire.clients.cli", "serve", "--model", str(directory)]
    command += ["--port", "0", "--http-port", "0", "--max-model-len", "4096"]
    with tempfile.TemporaryFile("w+") as said:
        begin = time.perf_counter()
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=_environment() | dict(environment),
        ) as server:
            assert server.stdout is not None
            line = server.stdout.readline()
            seconds = time.perf_counter() - begin
            server.terminate()
            server.stdout.read()
        said.seek(0)
        log = said.read()
    if not line.startswith("serving"):
        raise SystemExit(f"the server did not start: {line!r}\n{log[-2000:]}")
    return Start(seconds, stages_of(log, seconds))


def stages_of(log: str, seconds: float) -> dict[str, float]:
    """The time line of a server's log, and what of the whole it does not tell."""
    lines = _LINE.findall(log)
    if not lines:
        raise SystemExit(f"the server's log tells no time line:\n{log[-2000:]}")
    stages = {name: float(value) for name, value in _STAGE.findall(lines[-1])}
    return {"around": seconds - sum(stages.values()), **stages}


def middle(found: Sequence[Start]) -> dict[str, float]:
    """The median of each stage."""
    return {
        name: round(statistics.median(one.stages.get(name, 0.0) for one in found), 3)
        for name in found[0].stages
    }

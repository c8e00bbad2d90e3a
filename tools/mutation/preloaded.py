"""A process that has imported what the tests need of others, and forks each run of the tests.

    python preloaded.py PLACE

torch and transformers take longer to import than most faults' tests take to run. An order comes on
standard input as a line of JSON: pytest's arguments, what else its environment holds, and the file
that its output goes to. Two lines go back on standard output: the id of the process, which leads a
group of its own, and, once it has ended and what was left of its group is killed, its exit code.

Honest, because nothing of Quire is imported before the fork, and because each run looks where what
it has imported of Quire came from: outside PLACE, it was no run of the copy (`STRANGE`).
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

THIRD_PARTY = (
    *("pytest", "_pytest.assertion.rewrite", "_hypothesis_pytestplugin", "hypothesis.strategies"),
    *("cryptography.x509", "google.protobuf.json_format", "google.rpc.status_pb2", "grpc.aio"),
    *("grpc_health.v1.health_pb2", "grpc_reflection.v1alpha.reflection", "grpc_status.rpc_status"),
    *("jinja2.sandbox", "llguidance", "numpy", "prometheus_client", "psutil", "rich.console"),
    *("rich.live", "safetensors.torch", "starlette.applications", "tokenizers", "torch"),
    *("transformers", "triton.language", "typer.testing", "uvicorn", "uvloop", "xdist.plugin"),
)
"""One that is not installed is the tests' to miss."""
STRANGE = 70
"""The exit code of a run that imported Quire from elsewhere."""


def main() -> None:
    """Serve orders until standard input ends."""
    place = Path(sys.argv[1]).resolve()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # as the programs set it before they import it
    for name in THIRD_PARTY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    threads = len(list(Path("/proc/self/task").iterdir())) if Path("/proc").exists() else 1
    assert threads == 1, "a library starts threads when it is imported: no process to fork"
    assert not any(_ours()), "a library imports Quire"
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            sys.exit(_run(**order, place=place))
        _tell(pid)
        _tell(_end(pid))


def _tell(number: int) -> None:
    print(number, flush=True)


def _end(pid: int) -> int:
    """Waits for a run; kills what it leaves; its exit code, negative for a signal."""
    if hasattr(os, "pidfd_open"):  # whoever gave the order may end first, and so ends the run
        ended = os.pidfd_open(pid)
        select.select([ended, sys.stdin], [], [])
        os.close(ended)
    else:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # not reaped: its id stays its group's
    with contextlib.suppress(ProcessLookupError, PermissionError):  # no group yet, or nobody left
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _run(arguments: list[str], environment: dict[str, str], output: str, place: Path) -> int:
    """In the forked process: pytest, as `python -m pytest` runs it."""
    os.setsid()
    os.environ.update(environment)
    _open(output)
    sys.argv[:] = ["pytest", *arguments]
    sys.path[0] = str(Path.cwd())
    code = int(importlib.import_module("pytest").main(arguments))
    strangers = [file for file in _ours() if not Path(file).resolve().is_relative_to(place)]
    if strangers:
        print(f"not of the copy: {', '.join(strangers)}")
        return STRANGE
    return code


def _open(output: str) -> None:
    """Standard streams: nothing to read, and all that is written goes to a file."""
    nothing, file = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_CREAT)
    for descriptor, standard in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(descriptor, standard)
    os.close(nothing)
    os.close(file)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115


def _ours() -> Iterator[str]:
    """The files of Quire's modules that are imported."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.split(".")[0] == "quire" and file:
            yield file


if __name__ == "__main__":
    main()

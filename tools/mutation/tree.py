"""A copy of the tree in which faults are tried, and its tests, each run in a process of its own."""

import compileall
import contextlib
import hashlib
import json
import os
import py_compile
import select
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mutation import preloaded

ROOT = Path(__file__).resolve().parent.parent.parent
CODE = ("engine", "kernels", "service", "clients", "course", "proto")
FOLDERS = (*CODE, "benchmarks", "examples", "tests", "tools")  # what tests look at
PACKAGES = {
    "engine": "engine",
    "kernels": "kernels",
    "service": "service",
    "clients": "clients",
    "v1": "proto/quire/v1",
}
IGNORED = ("__pycache__", ".hypothesis")


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a run of tests: pytest's exit code, None if it ran out of time."""

    code: int | None
    output: str


class Copy:
    """A copy of the tree, importable in place of the installed packages; `close` ends it."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self.root = place / "tree"
        names = place / "names" / "quire"
        names.mkdir(parents=True)
        for folder in FOLDERS:
            ignore = shutil.ignore_patterns(*IGNORED)
            shutil.copytree(ROOT / folder, self.root / folder, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", self.root)
        # Not below the tree: a program started there would find it first, and the original's rooms.
        for file in ("__init__.py", "py.typed"):
            shutil.copy(ROOT / "quire" / file, names)
        self._names = names.parent
        for name, folder in PACKAGES.items():
            (names / name).symlink_to(self.root / folder, target_is_directory=True)
        self.digest = self._digest()
        self._compile()
        self._process = self._start()

    def _digest(self) -> str:
        """Of all that is copied."""
        summed = hashlib.sha256()
        for path in sorted(path for path in self._place.rglob("*") if path.is_file()):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            summed.update(f"{path.relative_to(self._place)} {content}\n".encode())
        return summed.hexdigest()

    def _compile(self) -> None:
        """Once for all runs. Each import compares the source's own hash, not its time and size: a
        fault put in within a second, as long as what it replaces, would go unnoticed."""
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        for folder in CODE:
            compileall.compile_dir(self.root / folder, quiet=2, invalidation_mode=mode)

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "PYTHONPATH": str(self._names),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "TESTS_LONG": "1",
        }
        return subprocess.Popen(
            [sys.executable, preloaded.__file__, str(self._place)],
            cwd=self.root,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # what is read ahead, `select` would not see
        )

    def file(self, name: str) -> Path:
        """Where a file of the tree lies here."""
        return (self._names if name.startswith("quire/") else self.root) / name

    def run(self, tests: tuple[str, ...], limit: float, patience: float | None = None) -> Run:
        """Run tests until the first fails, for `limit` seconds at most.

        patience: seconds that a test waits for what must come; None: as long as the tests wish.
        """
        shutil.rmtree(self.root / ".hypothesis", ignore_errors=True)  # found under another fault
        output = self._place / "output"
        output.unlink(missing_ok=True)
        arguments = ["-x", "-q", "-p", "no:cacheprovider", *tests]
        environment = {} if patience is None else {"TESTS_PATIENCE": str(patience)}
        order = json.dumps(
            {"arguments": arguments, "environment": environment, "output": str(output)}
        )
        assert self._process.stdin is not None
        self._process.stdin.write(order.encode() + b"\n")
        group = self._number()
        in_time = bool(select.select([self._process.stdout], [], [], limit)[0])
        if not in_time:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        code = self._number()
        text = output.read_text(errors="replace") if output.exists() else ""
        return Run(code if in_time else None, text)

    def _number(self) -> int:
        """The next line of the process."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process that forks the tests has ended")
        return int(line)

    def close(self) -> None:
        """End the process that forks."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

"""Old faults put back, one at a time: each must make a test fail (`make mutants`).

    python tools/mutants.py [--list] [--jobs N] [NAME …]

A fault is a patch of the text of one file, applied to a copy of the tree: it must fit in exactly
one place, so that a fault does not rot into no fault unnoticed. Only the tests that should catch it
run. First they all run on the unpatched copy, and must pass. Exits non-zero if a fault survives,
does not fit, or breaks the tests in another way than making one fail.
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("engine", "kernels", "service", "clients", "course", "proto", "tests")
PACKAGES = {
    "engine": "engine",
    "kernels": "kernels",
    "service": "service",
    "clients": "clients",
    "v1": "proto/quire/v1",
}
LIMIT = 180.0  # seconds for one fault's tests: a hang is a failure too
PASSED, FAILED = 0, 1  # of pytest's exit codes; the others say that tests could not be run


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a fault."""

    killed: bool
    why: str


class Copy:
    """A copy of the tree, importable in place of the installed packages."""

    def __init__(self, place: Path) -> None:
        self.root = place / "tree"
        names = place / "names" / "quire"
        names.mkdir(parents=True)
        for folder in FOLDERS:
            ignore = shutil.ignore_patterns("__pycache__", ".hypothesis")
            shutil.copytree(ROOT / folder, self.root / folder, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", self.root)
        # Not below the tree: a program started there would find it first, and the original's rooms.
        for file in ("__init__.py", "py.typed"):
            shutil.copy(ROOT / "quire" / file, names)
        self._names = names.parent
        for name, folder in PACKAGES.items():
            (names / name).symlink_to(self.root / folder, target_is_directory=True)
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(names.parent),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "TESTS_LONG": "1",
        }

    def file(self, name: str) -> Path:
        """Where a file of the tree lies here."""
        return (self._names if name.startswith("quire/") else self.root) / name

    def run(self, tests: tuple[str, ...], limit: float | None) -> tuple[int | None, str]:
        """Run tests until the first fails, for `limit` seconds at most; exit code (None: out of
        time) and output."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        try:
            done = subprocess.run(
                command,
                cwd=self.root,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None, ""
        return done.returncode, done.stdout + done.stderr

    def origin(self) -> str:
        """Where the engine is imported from, to be sure that it is this copy."""
        command = [sys.executable, "-c", "import quire.engine as e; print(e.__file__)"]
        done = subprocess.run(
            command,
            cwd=self.root.parent,
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()


def judge(copy: Copy, fault: Fault) -> Verdict:
    """Put one fault in, run its tests, take it out again."""
    path = copy.file(fault.file)
    sound = path.read_text(encoding="utf-8")
    fits = sound.count(fault.old)
    if fits != 1:
        return Verdict(False, f"fits in {fits} places of {fault.file}, not in one")
    path.write_text(sound.replace(fault.old, fault.new), encoding="utf-8")
    try:
        code, output = copy.run(fault.tests, LIMIT)
    finally:
        path.write_text(sound, encoding="utf-8")
    if code is None:
        return Verdict(True, f"ran longer than {LIMIT:.0f} s")
    if code == FAILED:
        return Verdict(True, _first_failure(output))
    if code == PASSED:
        return Verdict(False, "SURVIVED")
    return Verdict(False, f"the tests could not be run (exit code {code}):\n{output[-2000:]}")


def _first_failure(output: str) -> str:
    failed = [line for line in output.splitlines() if line.startswith("FAILED ")]
    return failed[0].removeprefix("FAILED ").split(" - ")[0] if failed else "a test failed"


def main() -> int:
    """Judge all faults, or those named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to try (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time (default: 1)")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    args = parser.parse_args()
    unknown = set(args.names) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; see --list")
    if args.list:
        print("\n".join(fault.name for fault in FAULTS))
        return 0
    faults = [fault for fault in FAULTS if not args.names or fault.name in args.names]
    with tempfile.TemporaryDirectory(prefix="quire-mutants-") as place:
        copies = [Copy(Path(place) / str(number)) for number in range(max(args.jobs, 1))]
        if not copies[0].origin().startswith(place):
            print(f"the copy is not what is imported: {copies[0].origin()}", file=sys.stderr)
            return 1
        tests = tuple(sorted({test for fault in faults for test in fault.tests}))
        code, output = copies[0].run(tests, None)
        if code != PASSED:
            print(f"the tests fail without any fault:\n{output[-4000:]}", file=sys.stderr)
            return 1
        print(f"without a fault all of their {len(tests)} tests pass", flush=True)
        survivors = _survivors(copies, faults)
    print(f"{len(faults) - survivors} of {len(faults)} faults were caught")
    return 1 if survivors else 0


def _survivors(copies: list[Copy], faults: list[Fault]) -> int:
    """How many are not caught; each copy takes the next fault when it has done with one."""
    free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)

    def caught(fault: Fault) -> bool:
        copy = free.get()
        try:
            return _report(copy, fault)
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(copies)) as pool:
        return sum(not killed for killed in pool.map(caught, faults))


def _report(copy: Copy, fault: Fault) -> bool:
    began = time.monotonic()
    verdict = judge(copy, fault)
    mark = "caught" if verdict.killed else "MISSED"
    print(f"{mark} {fault.name} ({time.monotonic() - began:.0f} s): {verdict.why}", flush=True)
    return verdict.killed


if __name__ == "__main__":
    sys.exit(main())

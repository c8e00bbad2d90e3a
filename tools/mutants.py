"""Old faults put back, one at a time: each must make a test fail (`make mutants`).

    python tools/mutants.py [--list] [--jobs N] [--journal FILE] [NAME …]

A fault is a patch of the text of one file, applied to a copy of the tree: it must fit in exactly
one place, so that a fault does not rot into no fault unnoticed. Only the tests that should catch it
run. First each fault's tests run without it, as they will run with it, and must pass. Exits
non-zero if they do not, or if a fault survives, does not fit, or breaks its tests in another way
than making one fail. What was caught only by a test that waited in vain, or by the limit, is told
apart. What passed or was caught is kept in a journal, and not run again on the same tree.
"""

import argparse
import hashlib
import queue
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parent))

from faults import FAULTS, Fault
from mutation.journal import Journal, Line
from mutation.tree import ROOT, Copy

LIMIT = 1200.0
"""Seconds for one fault's tests on a machine that does much else: a hang is a failure too."""
PATIENCE, TIMES = 15.0, 5
"""Seconds, and times as long as its tests took without it, that they wait for what a fault holds
back. What is slower than that would be taken for caught: so it is told, and may be tried alone."""
T = TypeVar("T")
PASSED, FAILED = 0, 1  # of pytest's exit codes; the others say that tests could not be run


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a fault, or of tests without one.

    how: of a fault that was caught, empty, "after all patience" or "by the limit alone".
    """

    good: bool
    why: str
    how: str = ""


def control(copy: Copy, tests: tuple[str, ...]) -> Verdict:
    """Whether tests pass without a fault."""
    run = copy.run(tests, LIMIT)
    if run.code == PASSED and " passed" not in run.output:
        return Verdict(False, "nothing was tried: the tests were skipped here")
    if run.code == PASSED:
        return Verdict(True, "passed")
    return Verdict(False, f"exit code {run.code} without any fault:\n{run.output[-3000:]}")


def judge(copy: Copy, fault: Fault, seconds: float) -> Verdict:
    """Put one fault in, run its tests, which took `seconds` without it, take it out again."""
    patience = max(PATIENCE, TIMES * seconds)
    path = copy.file(fault.file)
    sound = path.read_text(encoding="utf-8")
    fits = sound.count(fault.old)
    if fits != 1:
        return Verdict(False, f"fits in {fits} places of {fault.file}, not in one")
    path.write_text(sound.replace(fault.old, fault.new), encoding="utf-8")
    try:
        began = time.monotonic()
        run = copy.run(fault.tests, LIMIT, patience)
        waited = time.monotonic() - began >= patience
    finally:
        path.write_text(sound, encoding="utf-8")
    if run.code is None:
        return Verdict(True, f"ran longer than {LIMIT:.0f} s", "by the limit alone")
    if run.code == FAILED or (run.code < 0 and _failed(run.output)):  # that may crash at its end
        how = "after all patience" if waited else ""
        return Verdict(True, _first_failure(run.output), how)
    if run.code == PASSED:
        return Verdict(False, "SURVIVED")
    return Verdict(
        False, f"the tests could not be run (exit code {run.code}):\n{run.output[-2000:]}"
    )


def _failed(output: str) -> list[str]:
    """Of pytest's summary: a run that has it has had its tests, however its process ends."""
    return [line for line in output.splitlines() if line.startswith("FAILED ")]


def _first_failure(output: str) -> str:
    failed = _failed(output)
    return failed[0].removeprefix("FAILED ").split(" - ")[0] if failed else "a test failed"


class Trial:
    """Faults and their tests, tried on copies, each of which takes the next when it is free."""

    def __init__(self, copies: list[Copy], journal: Journal) -> None:
        self._copies = copies
        self._journal = journal
        self._free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for copy in copies:
            self._free.put(copy)

    def without(self, faults: list[Fault]) -> dict[tuple[str, ...], Line | None]:
        """What became of each fault's tests without it; None: they fail."""
        each = list(dict.fromkeys(fault.tests for fault in faults))
        named = [(" ".join(tests), tests) for tests in each]
        return dict(zip(each, self._all("passed", named, control), strict=True))

    def with_each(
        self, faults: list[Fault], passed: dict[tuple[str, ...], Line | None]
    ) -> list[Line | None]:
        """What became of each fault whose tests passed without it; None: it was not caught."""

        def judged(copy: Copy, fault: Fault) -> Verdict:
            before = passed[fault.tests]
            assert before is not None
            return judge(copy, fault, before.seconds)

        sound = [(fault.name, fault) for fault in faults if passed[fault.tests]]
        return self._all("caught", sound, judged)

    def _all(
        self, word: str, named: list[tuple[str, T]], judged: Callable[[Copy, T], Verdict]
    ) -> list[Line | None]:
        with ThreadPoolExecutor(len(self._copies)) as pool:
            return list(pool.map(lambda each: self._one(word, *each, judged), named))

    def _one(
        self, word: str, name: str, what: T, judged: Callable[[Copy, T], Verdict]
    ) -> Line | None:
        """What is already known of it, or what it is found to be now."""
        key = hashlib.sha256(f"{self._copies[0].digest} {what}".encode()).hexdigest()
        if known := self._journal.get(key):
            return known
        copy = self._free.get()
        began = time.monotonic()
        try:
            verdict = judged(copy, what)
        finally:
            self._free.put(copy)
        line = Line(key, name, verdict.why, time.monotonic() - began, verdict.how)
        mark = word if verdict.good else "MISSED"
        print(f"{mark} {name} ({line.seconds:.1f} s): {verdict.why} {verdict.how}", flush=True)
        if not verdict.good:
            return None
        self._journal.add(line)
        return line


def _chosen() -> tuple[argparse.Namespace, list[Fault]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to try (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="faults at a time (default: 1)")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument(
        "--journal",
        type=Path,
        default=ROOT / "build" / "mutants.jsonl",
        help="where what was run is kept, and not run again on the same tree (%(default)s)",
    )
    args = parser.parse_args()
    unknown = set(args.names) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; see --list")
    return args, [fault for fault in FAULTS if not args.names or fault.name in args.names]


def main() -> int:
    """Judge all faults, or those named."""
    args, faults = _chosen()
    if args.list:
        print("\n".join(fault.name for fault in faults))
        return 0
    with tempfile.TemporaryDirectory(prefix="quire-mutants-") as place:
        copies = [Copy(Path(place) / str(number)) for number in range(max(args.jobs, 1))]
        try:
            trial = Trial(copies, Journal(args.journal))
            passed = trial.without(faults)
            sound = sum(passed[fault.tests] is not None for fault in faults)
            print(f"without a fault the tests of {sound} of {len(faults)} pass", flush=True)
            lines = trial.with_each(faults, passed)
        finally:
            for copy in copies:
                copy.close()
    caught = [line for line in lines if line]
    for line in caught:
        if line.how:
            print(f"caught {line.how}: {line.name}")
    print(f"{len(caught)} of {len(faults)} faults were caught")
    return 0 if len(caught) == len(faults) else 1


if __name__ == "__main__":
    sys.exit(main())

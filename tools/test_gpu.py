"""Every test that needs a CUDA device, with what was run on what as JSON (`make test-gpu`).

    python tools/test_gpu.py [--out FILE] [--jobs N] [-k WORDS]

Tests run in many processes at once, so that kernels compile side by side: each file of the engine's
tests in one of its own, those of the kernels and of whole families cut into shares, as long as the
last results of record say that they take; the longest come first. Those in which memory ran out,
which others may have held, run once more, one after another.
The JSON holds commit, versions, machine, the counts, the failures' messages, and how long each file
took; beside it, exactness.json is the table of what is bit for bit the same and what is not. Exits
1 where a test failed or none ran, 2 where there is no device.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "tools")]
sys.path.append(str(ROOT / "benchmarks"))

from common import commit, machine, typed, versions  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
MARKS = "gpu or triton"
_MARKED = re.compile(r"mark\.(gpu|triton)\b")
_MAX_OF_A_MESSAGE = 4000
_SHARE, _SHARE_SECONDS = 24, 60.0  # most tests of a process, and most seconds
_UNKNOWN = 20.0  # seconds of a test that no record knows
_CUT = ("kernels", "test_families_served.py")  # in the path of files whose tests stand alone


@dataclass
class Outcome:
    """What came of one file: counts, and (test, message) of each failure."""

    path: str
    seconds: float = 0.0
    passed: int = 0
    skipped: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)


def marked_files(root: Path) -> list[Path]:
    """Test files that mark anything for a device."""
    return [p for p in sorted(root.rglob("test_*.py")) if _MARKED.search(p.read_text("utf-8"))]


def seconds_each(record: Path) -> dict[str, float]:
    """What one test of each file took when the results of record were made."""
    files = json.loads(record.read_text("utf-8"))["files"] if record.exists() else {}
    counts = {name: sum(one[k] for k in ("passed", "failed")) for name, one in files.items()}
    return {name: files[name]["seconds"] / max(1, count) for name, count in counts.items()}


def listed(files: Sequence[Path], words: str) -> list[str]:
    """The marked tests of files, as pytest names them. Raises RuntimeError where one is broken."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", MARKS]
    command += [*(["-k", words] if words else []), *map(str, files)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode not in (0, 5):
        raise RuntimeError(run.stdout[-_MAX_OF_A_MESSAGE:] + run.stderr)
    return [line for line in run.stdout.splitlines() if "::" in line]


def shares(
    files: Sequence[Path], words: str, each: Mapping[str, float]
) -> list[tuple[Path, list[str]]]:
    """What runs in one process: a file, and which of its tests. The longest, by `each`, first;
    before them whole files, which build engines."""
    cut = [path for path in files if any(part in path.parts for part in _CUT)]
    whole = [(path, [str(path)]) for path in files if path not in cut]
    tests = listed(cut, words)
    found: list[tuple[float, Path, list[str]]] = []
    for path in cut:
        name = str(path.relative_to(ROOT))
        ids, one = [t for t in tests if t.startswith(name + "::")], each.get(name, _UNKNOWN)
        most = max(1, min(_SHARE, int(_SHARE_SECONDS / max(one, 0.01))))
        # Every n-th, so that tests of one kind, which take as long, are spread.
        count = -(-len(ids) // most)
        found += [(one * len(ids[i::count]), path, ids[i::count]) for i in range(count)]
    found.sort(key=lambda share: -share[0])
    return whole + [(path, ids) for _, path, ids in found]


def run_share(
    path: Path, tests: Sequence[str], words: str, environment: dict[str, str], seconds: int
) -> Outcome:
    """Run some of one file's marked tests in a process of their own."""
    outcome = Outcome(str(path.relative_to(ROOT)))
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-v", "-m", MARKS, f"--junitxml={report}"]
        command += [*(["-k", words] if words else []), *tests]
        try:
            run = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
            half = _MAX_OF_A_MESSAGE // 2  # where it crashed: in which test, and how
            code, said = run.returncode, run.stdout[-half:] + run.stderr[:half]
        except subprocess.TimeoutExpired as error:
            code, said = -1, f"stopped after {seconds} s\n{_text(error.stdout)}"
        if report.exists():
            read_report(report, outcome)
    # 5: no test of this file was selected. Anything else without a failed test is one itself.
    if code not in (0, 5) and not outcome.failures:
        outcome.failures.append({"test": outcome.path, "message": said[-_MAX_OF_A_MESSAGE:]})
    outcome.seconds = round(time.monotonic() - begin, 1)
    return outcome


def merged(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """One a file; its seconds are those of all its processes."""
    files: dict[str, Outcome] = {}
    for outcome in outcomes:
        whole = files.setdefault(outcome.path, Outcome(outcome.path))
        whole.seconds = round(whole.seconds + outcome.seconds, 1)
        whole.passed += outcome.passed
        whole.skipped += outcome.skipped
        whole.failures += outcome.failures
    return list(files.values())


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def read_report(report: Path, outcome: Outcome) -> None:
    """Count pytest's JUnit report into an outcome."""
    for case in ET.parse(report).getroot().iter("testcase"):
        fault = case.find("failure")
        fault = case.find("error") if fault is None else fault
        if fault is not None:
            name = f"{case.get('classname')}::{case.get('name')}"
            message = (fault.text or fault.get("message") or "")[-_MAX_OF_A_MESSAGE:]
            outcome.failures.append({"test": name, "message": message})
        elif case.find("skipped") is not None:
            outcome.skipped += 1
        else:
            outcome.passed += 1


def write(out: Path, outcomes: Sequence[Outcome], asked: Sequence[Any], seconds: float) -> None:
    """What is known so far, as JSON: a run cut short leaves it, and says how much is missing."""
    found = document(merged(outcomes), seconds) | {"processes": [len(outcomes), len(asked)]}
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def document(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    """What is written."""
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    return {
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "command": typed(sys.argv),
        "seconds": round(seconds, 1),
        "passed": sum(outcome.passed for outcome in outcomes),
        "failed": len(failures),
        "skipped": sum(outcome.skipped for outcome in outcomes),
        "failures": failures,
        "files": {
            outcome.path: {
                "passed": outcome.passed,
                "failed": len(outcome.failures),
                "skipped": outcome.skipped,
                "seconds": outcome.seconds,
            }
            for outcome in outcomes
        },
    }


def lacked_memory(outcome: Outcome) -> bool:
    """Whether a test failed for want of memory, which processes beside it may have held."""
    return any("out of memory" in failure["message"] for failure in outcome.failures)


def devices() -> list[str]:
    """What CUDA sees, asked in a process of its own: this one stays without a CUDA context."""
    ask = "import torch; print(*range(torch.cuda.device_count()))"
    run = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=False)
    found, named = run.stdout.split(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[: len(found)] if named else found


def led_by(names: Sequence[str], first: int) -> dict[str, str]:
    """The environment of a process that sees all devices, another one first: most tests take it."""
    turn = first % len(names)
    return {"CUDA_VISIBLE_DEVICES": ",".join([*names[turn:], *names[:turn]])}


def main() -> int:
    """Run all, write the JSON, and say what failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "test-gpu.json")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--seconds", type=int, default=400, help="most that one process may take")
    parser.add_argument("-k", dest="words", default="", help="only tests that match, as in pytest")
    options = parser.parse_args()
    names = devices()
    if not names:
        print("a CUDA device is needed", file=sys.stderr)
        return 2
    out = options.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    exactness = {"TESTS_EXACTNESS": str(out.with_name("exactness.json"))}
    environment = os.environ | {"TESTS_AT_ONCE": "1"} | ({} if options.words else exactness)
    begin, each = time.monotonic(), seconds_each(RESULTS / "test-gpu.json")
    parts = [
        partial(run_share, path, tests, options.words, environment | led_by(names, number))
        for number, (path, tests) in enumerate(
            shares(marked_files(ROOT / "tests"), options.words, each)
        )
    ]
    outcomes: dict[int, Outcome] = {}

    def keep(number: int, outcome: Outcome) -> None:
        outcomes[number] = outcome
        write(out, list(outcomes.values()), parts, time.monotonic() - begin)
        print(
            f"{outcome.path:45} {outcome.passed:4} passed {len(outcome.failures):3} failed "
            f"{outcome.skipped:3} skipped  {outcome.seconds:6.1f} s",
            flush=True,
        )

    with ThreadPoolExecutor(options.jobs) as pool:
        asked = {pool.submit(part, options.seconds): number for number, part in enumerate(parts)}
        for future in as_completed(asked):
            keep(asked[future], future.result())
    for number, outcome in sorted(outcomes.items()):
        if lacked_memory(outcome):
            keep(number, parts[number](options.seconds))
    found = document(merged(list(outcomes.values())), time.monotonic() - begin)
    for failure in found["failures"]:
        print(f"\nFAILED {failure['test']}\n{failure['message'][-1500:]}")
    print(f"\n{found['passed']} passed, {found['failed']} failed, {found['skipped']} skipped")
    return int(found["failed"] > 0 or found["passed"] == 0)


if __name__ == "__main__":
    sys.exit(main())

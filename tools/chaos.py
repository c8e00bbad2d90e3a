"""`make chaos`: 10,000 streams with everything that goes wrong, over a server in this process.

    python tools/chaos.py [--calls N] [--wave N] [--minutes M] [--seed S] [--only-ends]

Client processes call, cancel, let deadlines pass, read slowly, hang up, send what makes no sense,
and one in four is killed in mid-work; the device beneath the engine fails launches, steps and
single rows, runs out of memory and stalls. After each wave the books must be in order (tests/
shared/support/storm.py says what that means), and over the last half resident memory must not grow
by 1 KiB a stream. Before that, servers under attack are told to end, and their ends are timed
(chaos_ends.py). Prints what was seen; exits non-zero on any violation.
"""

import argparse
import asyncio
import secrets
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "tools")]
sys.path.insert(0, str(ROOT / "tests" / "shared"))
sys.path.append(str(ROOT / "tools"))

import chaos_ends  # noqa: E402
from support.storm import PARALLEL, Report, storm  # noqa: E402
from support.storm_client import KINDS  # noqa: E402

MAX_GROWTH = 1024  # bytes a stream
FAULTS = ("launch", "step", "memory", "row", "token", "stall")


def main() -> int:
    """Run the storm, print the table, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=10_000, help="calls of living clients")
    parser.add_argument("--wave", type=int, default=500, help="calls between looks at the books")
    parser.add_argument("--minutes", type=float, default=9.5, help="it must end within these")
    parser.add_argument("--seed", type=int, help="default: random")
    parser.add_argument(
        "--only-ends", action="store_true", help="no storm: ends under attack alone"
    )
    args = parser.parse_args()
    if not 1 <= args.wave <= args.calls:
        parser.error(f"--wave {args.wave}: must be 1 to --calls ({args.calls})")
    ends = chaos_ends.ends()
    chaos_ends.show(ends)
    late = [end.wrong for end in ends if end.wrong]
    if args.only_ends:
        return verdict(late)
    seed = secrets.randbelow(1 << 20) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    try:
        report = asyncio.run(bounded(args.calls, args.wave, seed, args.minutes * 60))
    except TimeoutError:
        print(f"chaos: not done after {args.minutes:g} minutes", file=sys.stderr)
        return 1
    show(report)
    return verdict([*late, *report.wrong, *judge(report)])


def verdict(wrong: list[str]) -> int:
    """Say what was wrong; the exit code."""
    for line in wrong:
        print(f"chaos: {line}", file=sys.stderr)
    print("in order" if not wrong else f"{len(wrong)} violations")
    return bool(wrong)


async def bounded(calls: int, wave: int, seed: int, seconds: float) -> Report:
    """The storm, with an end to it in any case."""
    async with asyncio.timeout(seconds):
        return await storm(calls, wave, seed, progress)


def progress(report: Report) -> None:
    """One line a wave."""
    resident = report.samples[-1].resident / 2**20 if report.samples else 0.0
    print(f"{report.calls:>7} calls  {resident:8.1f} MiB  {len(report.wrong)} wrong", flush=True)


def judge(report: Report) -> list[str]:
    """What only the whole run can tell."""
    wrong = []
    if report.slope >= MAX_GROWTH:
        wrong.append(f"memory grows by {report.slope:.0f} bytes a stream (at most {MAX_GROWTH})")
    if report.calls >= 5000:
        unseen = [kind for kind in KINDS if not report.kinds[kind]]
        unseen += [fault for fault in FAULTS if not report.injected[fault]]
        if unseen:
            wrong.append(f"never happened, so nothing is shown of it: {', '.join(unseen)}")
    return wrong


def show(report: Report) -> None:
    """What was seen."""
    requests, tokens = report.stats.requests, report.stats.tokens
    print(f"{report.calls} calls of living clients in {report.seconds:.0f} s")
    print(f"{report.killed} client processes killed, each with up to {PARALLEL} streams open")
    table("kind of call", report.kinds)
    table("status at the client", report.codes)
    table("injected into the device", report.injected)
    ends = {
        "accepted": requests.accepted,
        "stop": requests.finished_stop,
        "length": requests.finished_length,
        "cancelled": requests.finished_cancelled,
        "error": requests.finished_error,
        **{f"refused {code}": count for code, count in sorted(requests.refused.items())},
    }
    table("completions by Stats", Counter(ends))
    made = {
        "generated": tokens.generated,
        "delivered": tokens.delivered,
        "discarded": tokens.discarded,
        "preemptions": report.stats.cache.preemptions,
        "prefix tokens hit": report.stats.cache.prefix_tokens_hit,
    }
    table("tokens and cache by Stats", Counter(made))
    print(f"memory over the last half: {report.slope:+.0f} bytes a stream")


def table(title: str, counts: "Counter[str]") -> None:
    """Names and counts."""
    print(f"\n{title}")
    for name, count in counts.items():
        print(f"  {name:<28}{count:>9}")
    print(flush=True)


if __name__ == "__main__":
    sys.exit(main())

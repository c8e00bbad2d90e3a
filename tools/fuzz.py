"""100,000 messages that make little sense, to a server in this process (part of `make soak`).

    python tools/fuzz.py [--messages N] [--seed S]

The fuzz of the test suite (tests/shared/support/fuzzing.py) on other seeds, for longer. Exits
non-zero if any message is answered with INTERNAL or another status that does not blame the message,
if an object of a call outlives it, or if resident memory grows over the last half.
"""

import argparse
import asyncio
import secrets
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "tools")]
sys.path.insert(0, str(ROOT / "tests" / "shared"))

from support.fuzzing import Fuzz, fuzzed  # noqa: E402
from support.harness import Running, serving  # noqa: E402
from support.storm import OURS, Report, Sample, objects_of_calls, resident  # noqa: E402

from quire.service.constraints.grammars import Grammars  # noqa: E402

PORTION = 2000
MAX_GROWTH = 1024  # bytes a message


def main() -> int:
    """Send them all, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=100_000, help="messages to send")
    parser.add_argument("--seed", type=int, help="first portion's seed (default: random)")
    args = parser.parse_args()
    if args.messages < 1:
        parser.error(f"--messages {args.messages}: must be at least 1")
    seed = secrets.randbelow(1 << 40) if args.seed is None else args.seed
    print(f"first seed {seed}", flush=True)
    return asyncio.run(fuzz(args.messages, seed))


async def fuzz(messages: int, seed: int) -> int:
    """Portion by portion, each with the next seed."""
    memory, began = Report(), time.monotonic()
    async with serving(
        engine={"num_blocks": 40}, max_waiting=10_000, matchers=Grammars(2)
    ) as running:
        fuzz, before = Fuzz(running), objects_of_calls(OURS)
        while memory.calls < messages:
            count = min(PORTION, messages - memory.calls)
            await fuzz.send_all(await asyncio.to_thread(fuzzed, count, seed))
            seed += 1
            memory.calls += count
            await look(running, fuzz, memory, before)
            print(f"{memory.calls:>8} messages, {time.monotonic() - began:.0f} s", flush=True)
    if memory.slope >= MAX_GROWTH:
        fuzz.wrong.append(f"memory grows by {memory.slope:.0f} bytes a message")
    for name, count in sorted(fuzz.codes.items()):
        print(f"{name:>32} {count:>8}")
    print(f"memory over the last half: {memory.slope:+.0f} bytes a message")
    for line in fuzz.wrong:
        print(f"fuzz: {line}", file=sys.stderr)
    return bool(fuzz.wrong)


async def look(running: Running, fuzz: Fuzz, memory: Report, before: Counter[str]) -> None:
    """Nothing may be left but what was there before any message came; note the memory."""
    await running.idle()
    left = objects_of_calls(OURS) - before
    if left or running.server.ledger.open:
        fuzz.wrong.append(f"after {memory.calls}: left over: {dict(left)}")
    memory.samples.append(Sample(memory.calls, resident()))


if __name__ == "__main__":
    sys.exit(main())

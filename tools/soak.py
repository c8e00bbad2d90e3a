"""A million simulated steps of random traffic through scheduler and block pool (`make soak`).

    python tools/soak.py [--steps N] [--seed S]

The same proof as the test suite's, on other seeds, for as long as asked. Prints what was seen, and
exits non-zero with the seed of the episode on the first violation.
"""

import argparse
import secrets
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "tools")]
sys.path.insert(0, str(ROOT / "tests" / "shared"))

from support.simulation import Tally  # noqa: E402
from support.traffic import run_steps  # noqa: E402

PORTION = 20_000
WANTED = ("preemptions", "hits", "partial_copies", "evictions", "aborts_in_flight", "duplicates")


def main() -> int:
    """Run portions until the steps are done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000, help="steps to simulate")
    parser.add_argument("--seed", type=int, help="first episode's seed (default: random)")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps {args.steps}: must be at least 1")
    seed = secrets.randbelow(1 << 40) if args.seed is None else args.seed
    print(f"first seed {seed}", flush=True)
    tally, episodes, began = Tally(), 0, time.monotonic()
    while tally.steps < args.steps:
        portion, count = run_steps(min(PORTION, args.steps - tally.steps), seed + episodes)
        tally.add(portion)
        episodes += count
        print(f"{tally.steps:>9} steps, {time.monotonic() - began:.0f} s", flush=True)
    for name in tally.__slots__:
        print(f"{name:>18} {getattr(tally, name):>10}")
    rare = [name for name in WANTED if getattr(tally, name) < 100]
    if rare and args.steps >= PORTION:
        print(f"too rarely seen to mean anything: {', '.join(rare)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

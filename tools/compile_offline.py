"""Compile every Triton kernel on a machine with no GPU, and report what the code costs.

    python tools/compile_offline.py [--only WORD …] [--arch 90] [--json FILE]

Registers, shared memory, spills and matrix instructions are read from the machine code. The
launches compiled are those of the public functions themselves, called on meta tensors, so what is
reported is what will run. Exits 1 if a hot configuration spills, or if any kernel asks for more
shared memory than the device gives a program (an offline compile does not check that).
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import offline.attention
import offline.experts
import offline.fp8
import offline.fp8_cache
import offline.rest  # noqa: F401  each registers what it calls
from offline.compiling import Report, compile_all

from quire.kernels.cards import SHARED_LIMITS


def _print(row: Report) -> None:
    print(
        f"{row.case:44} {row.kernel:26} {row.warps:2}w {row.stages}s {row.registers:3} regs"
        f" {row.shared:6} B shared  spill {row.spill_stores}/{row.spill_loads}"
        f"  wgmma {row.wgmma} mma {row.mma} cp.async {row.cp_async} tma {row.tma}"
        f" ldg128 {row.wide_loads}  {row.seconds} s  {row.fault}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="cases whose name contains one of these"
    )
    parser.add_argument("--hot", action="store_true", help="hot cases alone")
    parser.add_argument("--arch", type=int, default=90, choices=SHARED_LIMITS, help="90 is sm_90")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()
    rows = []
    for row in compile_all(options.only, hot_only=options.hot, arch=options.arch):
        _print(row)
        rows.append(row)
    if options.json:
        options.json.write_text(
            json.dumps([asdict(r) | {"fault": r.fault} for r in rows], indent=1)
        )
    return 1 if any(row.fault for row in rows) or not rows else 0


if __name__ == "__main__":
    sys.exit(main())

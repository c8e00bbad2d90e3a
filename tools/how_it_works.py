"""`make plots`: the diagrams of docs/how-it-works, as SVG.

    python tools/how_it_works.py [--into docs/how-it-works] [--check]

With --check nothing is written, and the exit code says whether the files are what would be.
"""

import argparse
import sys
from pathlib import Path

from drawings import blocks, memory, processes, request, step

ROOT = Path(__file__).resolve().parent.parent
DRAWINGS = {
    "request": request.draw,
    "blocks": blocks.draw,
    "step": step.draw,
    "memory": memory.draw,
    "processes": processes.draw,
}


def main() -> int:
    """Write all, or say which of them are stale."""
    parser = argparse.ArgumentParser(description="The diagrams of docs/how-it-works.")
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "how-it-works")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    stale = []
    for name, draw in DRAWINGS.items():
        path, fresh = options.into / f"{name}.svg", draw().svg()
        if not path.exists() or path.read_text(encoding="utf-8") != fresh:
            stale.append(path.name)
            if not options.check:
                path.write_text(fresh, encoding="utf-8")
    if stale and options.check:
        print(f"{', '.join(stale)}: not what tools/how_it_works.py draws; run it")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

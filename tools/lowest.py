"""The oldest versions that pyproject.toml allows, for an environment made of them.

    python tools/lowest.py                    requirements, one a line: name==lowest version
    python tools/lowest.py --lend DIRECTORY   let that environment find the rest in this one

What is pinned: all that the server needs, with its lower bounds. torch and triton are too large to
have twice; they and what the tests need are lent, behind what is pinned. The lowest Python is part
of it: with a newer one, old versions would have to be built.
"""

import argparse
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
LENT = ("torch", "triton")
LENDER = "zz_lent.pth"  # site reads these in the order of their names


class Unpinned(Exception):
    """No lowest version can be told; the message says of what."""


def main() -> int:
    """Print the pins, or write the file that lends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lend", type=Path, metavar="DIRECTORY", help="an environment")
    args = parser.parse_args()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    try:
        if args.lend is not None:
            lend(args.lend)
        else:
            check_python(project["requires-python"])
            print("\n".join(pins(project)))
    except Unpinned as error:
        print(f"lowest: {error}", file=sys.stderr)
        return 1
    return 0


def check_python(wanted: str) -> None:
    """This Python is the lowest of those allowed."""
    lowest = lower_bound("Python", SpecifierSet(wanted))
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    if running != lowest:
        raise Unpinned(
            f"Python {lowest} is needed, the lowest allowed, and this is {running}: "
            f"make test-lowest PYTHON=python{lowest} VENV=.venv-{lowest}"
        )


def pins(project: dict[str, Any]) -> list[str]:
    """project: pyproject's section. Requirements of the server as `name==version`."""
    needed = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    found = []
    for needs in map(Requirement, needed):
        here = needs.marker is None or needs.marker.evaluate()
        if here and needs.name not in LENT:
            found.append(f"{needs.name}=={lower_bound(needs.name, needs.specifier)}")
    return found


def lower_bound(name: str, allowed: SpecifierSet) -> str:
    """The version after `>=`."""
    bounds = [one.version for one in allowed if one.operator == ">="]
    if len(bounds) != 1:
        raise Unpinned(f"{name} {allowed}: must have one lower bound (>=)")
    return bounds[0]


def lend(directory: Path) -> None:
    """An environment's own packages are found before those that a .pth file names."""
    lent = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    places = list(directory.glob("lib/python*/site-packages"))
    if len(places) != 1:
        raise Unpinned(f"{directory}: is no environment")
    (places[0] / LENDER).write_text("\n".join(lent) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

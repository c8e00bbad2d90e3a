"""Write the tables of measured figures into README.md and docs/performance.md, from the JSON files.

    python tools/tables.py            # after new files in benchmarks/results/
    python tools/tables.py --check    # exit 1 if a table is not what the files say

Invariant: no figure in these tables is typed by hand; each stands in a committed file that names
machine, versions, commit and command.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- measured: begin", "<!-- measured: end -->"
# Files in the order of the page, and whether the README shows them too.
FILES = {
    "offline-0.6B.json": True,
    "start-0.6B.json": True,
    "offline-8B.json": True,
    "start-8B.json": True,
    "serving-0.6B.json": True,
    "decode.json": False,
    "prefill.json": False,
    "kernels.json": False,
    "host.json": False,
    "profile-0.6B.json": False,
    "cpu-vs-transformers.json": True,
    "serving-cpu.json": True,
    "overload.json": True,
}


def number(value: Any) -> str:
    """A figure with three digits that mean something."""
    if value is None:
        return ""
    if not isinstance(value, int | float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def share(value: Any) -> str:
    return "" if value is None else f"{value:.0%}"


def described(document: Mapping[str, Any]) -> str:
    """Where the figures come from, in one line."""
    machine, versions = document["machine"], document["versions"]
    where = machine.get("gpu") or f"{machine.get('cpus')} CPU cores"
    parts = [str(where), f"torch {versions.get('torch')}", f"triton {versions.get('triton')}"]
    command = document["command"]
    command = command if isinstance(command, str) else " ".join(command)
    return f"{', '.join(parts)}; commit {document['commit'][:12]}; `{command}`"


def what(row: Mapping[str, Any]) -> str:
    name = " ".join(str(row[k]) for k in ("workload", "part", "case", "kernel") if row.get(k))
    return name + (f", {row['launches']:g} a step" if "launches" in row else "")


def table(name: str, document: Mapping[str, Any]) -> Iterator[str]:
    """One file's figures; where it compares engines, they stand side by side."""
    yield f"**`{name}`**: {described(document)}"
    yield ""
    engines = list(dict.fromkeys(row["engine"] for row in document["rows"]))
    yield from one_engine(document) if len(engines) == 1 else side_by_side(document, engines)
    yield ""


def one_engine(document: Mapping[str, Any]) -> Iterator[str]:
    yield "| workload | model | value | unit | floor | share of floor | runs |"
    yield "|---|---|---|---|---|---|---|"
    for row in document["rows"]:
        runs = row.get("runs") or []
        spread = f"{number(min(runs))} to {number(max(runs))}" if len(runs) > 1 else ""
        cells = (what(row), row["model"], number(row["value"]), row["unit"])
        floor = (number(row.get("floor")), share(row.get("share_of_floor")), spread)
        yield "| " + " | ".join((*cells, *floor)) + " |"


def side_by_side(document: Mapping[str, Any], engines: Sequence[str]) -> Iterator[str]:
    """Medians, with their share of the floor."""
    yield "| workload | model | unit | floor | " + " | ".join(engines) + " |"
    yield "|---" * (4 + len(engines)) + "|"
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in document["rows"]:
        key = (what(row), row["model"], row["unit"], number(row.get("floor")))
        reached = share(row.get("share_of_floor"))
        value = number(row["value"]) + (f" ({reached})" if reached else "")
        found.setdefault(key, {})[row["engine"]] = value
    for key, values in found.items():
        yield "| " + " | ".join((*key, *(values.get(e, "") for e in engines))) + " |"


def section(readme: bool) -> str:
    """All tables of a page."""
    lines = []
    for name, in_readme in FILES.items():
        path = RESULTS / name
        if path.exists() and (in_readme or not readme):
            lines += list(table(name, json.loads(path.read_text())))
    return "\n".join(lines).strip()


def replaced(text: str, body: str) -> str:
    """The page with its measured section anew."""
    begin = text.index("\n", text.index(BEGIN)) + 1
    return text[:begin] + body + "\n" + text[text.index(END) :]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    stale = []
    for path, readme in ((ROOT / "README.md", True), (ROOT / "docs" / "performance.md", False)):
        old = path.read_text(encoding="utf-8")
        new = replaced(old, section(readme))
        if new != old:
            stale.append(path.name)
            if not options.check:
                path.write_text(new, encoding="utf-8")
    if stale and options.check:
        print(f"{', '.join(stale)}: not what benchmarks/results/ says; run tools/tables.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

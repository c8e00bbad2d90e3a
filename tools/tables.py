"""Write the tables of measured figures into READMEs and docs/performance*.md, from the JSON files.

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
FILES = (  # in the order of docs/performance-tables.md
    "offline-0.6B.json",
    "start-0.6B.json",
    "offline-8B.json",
    "start-8B.json",
    "offline-shapes.json",
    "offline-30B-A3B.json",
    "offline-30B-A3B-fp8.json",
    "offline-8B-fp8.json",
    "offline-8B-fp8-cache.json",
    "offline-0.6B-h100.json",
    "offline-8B-h100.json",
    "serving-0.6B.json",
    "decode.json",
    "prefill.json",
    "kernels.json",
    "host.json",
    "profile-0.6B.json",
    "cpu-vs-transformers.json",
    "gpt2-three-caches.json",
    "constraints.json",
    "constraints-0.6B.json",
    "http-vs-grpc.json",
    "serving-cpu.json",
    "overload.json",
)
SUMMARY = (  # whose steps, prompts and starts stand side by side in docs/performance.md
    "offline-0.6B.json",
    "start-0.6B.json",
    "offline-shapes.json",
    "offline-8B.json",
    "start-8B.json",
    "offline-8B-fp8.json",
    "offline-30B-A3B.json",
    "offline-30B-A3B-fp8.json",
)
PEER = "beside-vllm.json"  # the README's only table
SHOWN = {  # its workloads, in words
    "decode-b1": "a token, 1 request, ms",
    "decode-b64": "a step of 64 requests, ms",
    "decode-b256": "a step of 256 requests, ms",
    "nano-256": "256 mixed requests, tokens/s",
    "prefill": "prompts of 1,024 tokens, tokens/s",
    "ttft-cold": "first token of 3,000, cold, ms",
    "ttft-hit": "first token of 3,000, cached, ms",
}
SHOWN_BESIDE = {  # in the summary alone
    "decode-b8": "a step of 8 requests, ms",
    "ttft-cold-rested": "the same, after cached ones, ms",
    "ttft-hits": "the same, again and again, ms",
    "start": "start to `serving`, s",
    "start-first": "the same, no kernel compiled, s",
}
ORDER = (  # of the summary
    *("decode-b1", "decode-b8", "decode-b64", "decode-b256", "nano-256", "prefill"),
    *("ttft-cold", "ttft-cold-rested", "ttft-hit", "ttft-hits"),
    *("start", "start-first"),
)
COLUMNS = ("0.6B", "1.7B", "4B", "8B", "14B", "8B-fp8", "30B-A3B", "30B-A3B-fp8")
MODELS = ("0.6B", "8B")


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
    commits = dict.fromkeys(row.get("commit", document["commit"])[:12] for row in document["rows"])
    return f"{', '.join(parts)}; commit {', '.join(commits)}; `{command}`"


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


def all_tables() -> str:
    """The page of all figures: every file."""
    lines: list[str] = []
    for name in FILES:
        path = RESULTS / name
        if path.exists():
            lines += list(table(name, json.loads(path.read_text())))
    return "\n".join(lines).strip()


def summary() -> str:
    """The page of performance: the workloads of all models, side by side."""
    found: dict[tuple[str, str], str] = {}
    for name in SUMMARY:
        for row in json.loads((RESULTS / name).read_text())["rows"]:
            reached = share(row.get("share_of_floor"))
            value = number(row["value"]) + (f" ({reached})" if reached else "")
            found[row["workload"], row["model"]] = value
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for workload in ORDER:
        cells = [found.get((workload, model), "") for model in COLUMNS]
        if any(cells):
            lines.append("| " + " | ".join(((SHOWN | SHOWN_BESIDE)[workload], *cells)) + " |")
    return "\n".join(lines)


def beside_peer() -> str:
    """The README's table: each workload's figure in both engines, and how many times better."""
    document = json.loads((RESULTS / PEER).read_text())
    found = {(r["workload"], r["model"], r["engine"]): r for r in document["rows"]}
    columns = "".join(f" {model} vLLM | {model} Quire | times |" for model in MODELS)
    lines = [f"| |{columns}", "|---" * (1 + 3 * len(MODELS)) + "|"]
    for workload, words in SHOWN.items():
        cells = [words]
        for model in MODELS:
            ours, peers = (found[workload, model, engine] for engine in ("quire", "vllm"))
            times = ours["value"] / peers["value"]
            times = times if ours["unit"].endswith("/s") else 1 / times
            cells += [number(peers["value"]), number(ours["value"]), f"{times:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    where = f"{document['machine']['gpu']}, vLLM {document['versions']['vllm']}"
    lines += [
        "",
        f"{where}, bf16, random weights, one card in one call; `benchmarks/results/{PEER}`.",
    ]
    return "\n".join(lines)


def replaced(text: str, body: str) -> str:
    """The page with its measured section anew."""
    begin = text.index("\n", text.index(BEGIN)) + 1
    return text[:begin] + body + "\n" + text[text.index(END) :]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    stale = []
    readmes = dict.fromkeys((ROOT / "README.md", ROOT / "README.zh.md"), beside_peer())
    docs = ROOT / "docs"
    pages = readmes | {docs / "performance.md": summary()}
    pages |= {docs / "performance-tables.md": all_tables()}
    for path, body in pages.items():
        old = path.read_text(encoding="utf-8")
        new = replaced(old, body)
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

"""Figures in sentences: each is what the committed file says, rounded as the sentence rounds it."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Row = dict[str, Any]


def rows(name: str, key: str = "rows") -> list[Row]:
    found: list[Row] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())[key]
    return found


def value(name: str, **wanted: object) -> float:
    """The one row's that has these values."""
    (row,) = [row for row in rows(name) if wanted.items() <= row.items()]
    return float(row["value"])


def beside_llama_cpp() -> Iterable[float]:
    for kind in ("bf16", "int8"):
        ratios = [
            row["value"]
            for row in rows("cpu-vs-llama-cpp-0.6B")
            if row["engine"] == "quire / llama.cpp" and f" {kind} " in row["workload"]
        ]
        yield from (min(ratios), max(ratios))


def over_two_cards() -> Iterable[float]:
    for workload in ("decode-b1", "decode-b64"):
        one, two = (value("large", model="32B", workload=workload, ranks=n) for n in (1, 2))
        yield from (two, one, one / two)


def of_72b() -> Iterable[float]:
    yield from (value("large", model="72B", workload=f"decode-b{n}") for n in (1, 64))


def in_fp8() -> Iterable[float]:
    narrow, wide = (value(f"offline-8B{kind}", workload="prefill") for kind in ("-fp8", ""))
    yield narrow / wide
    yield from (
        value(f"offline-8B{kind}", workload=workload)
        for workload in ("decode-b1", "decode-b64")
        for kind in ("-fp8", "")
    )


def of_exact_mode() -> Iterable[float]:
    steps = {
        "0.6B": ["decode-b1", "decode-b8", "decode-b64", "decode-b256", "prefill", "nano-256"],
        "8B": ["decode-b1", "decode-b8", "decode-b64", "decode-b256", "prefill"],
    }
    for model, workloads in steps.items():
        for workload in workloads:
            on, off = (
                value("exact-cost", model=model, workload=workload, exact=exact)
                for exact in ("on", "off")
            )
            yield off / on - 1 if workload in ("prefill", "nano-256") else on / off - 1


def of_lost_ranks(name: str) -> Iterable[float]:
    """Up to when all streams had ended, and all processes: the slowest, rounded up."""
    killed = [row for row in rows(name, "rounds") if row["signal"] == "SIGKILL"]
    for key in ("streams_seconds", "gone_seconds"):
        yield -(max(row[key] for row in killed) * 10 // -1) / 10


def of_replicas_killed() -> Iterable[int]:
    (row,) = rows("failover")
    yield from (row["kills"], row["streams broken in the middle"], row["broken twice"])
    yield row["outcome"]["equal"]


SENTENCES: list[tuple[str, str, Callable[[], Iterable[float]]]] = [
    (
        "README.md",
        "{:.2f} to {:.2f} times its tokens/s on 0.6B in bf16, {:.2f} to {:.2f} in int8",
        beside_llama_cpp,
    ),
    (
        "README.zh.md",
        "0.6B 的 tokens/s 在 bf16 下是它的 {:.2f} 到 {:.2f} 倍，int8 下是 {:.2f} 到 {:.2f} 倍",
        beside_llama_cpp,
    ),
    (
        "docs/scaling.md",
        "a token of one stream takes {:.1f} ms instead of {:.1f} ({:.2f} times as fast), a step of"
        " 64 streams {:.1f} instead of {:.1f} ({:.2f} times)",
        over_two_cards,
    ),
    (
        "docs/scaling.md",
        "takes {:.1f} ms a token of one stream on two, and {:.1f} a step of 64 streams",
        of_72b,
    ),
    (
        "docs/scaling.md",
        "of three replicas {} were killed, {} streams broke in the middle, {} of them twice, and"
        " all {:,} were equal",
        of_replicas_killed,
    ),
    (
        "docs/operations.md",
        "prompts by {:.2f} times as fast on an H200. 8B decodes a token in {:.1f} ms at one row,"
        " where bf16 takes {:.1f}, and in {:.1f} at 64, where bf16 took {:.1f} in another run",
        in_fp8,
    ),
    (
        "docs/operations.md",
        "a step of 8B with 256 rows took {:.1f} ms on an H200, with a 16-bit cache {:.1f}",
        lambda: (
            value(f"offline-8B-fp8{cache}", workload="decode-b256") for cache in ("-cache", "")
        ),
    ),
    (
        "docs/operations.md",
        "steps of 0.6B differ by {:+.0%} at one row, {:+.0%} at 8, {:+.0%} at 64 and {:+.0%} at"
        " 256, prompts by {:+.0%}, 256 mixed requests by {:+.0%}; steps of 8B by {:+.0%} at one"
        " row, {:+.0%} at 8, {:+.0%} at 64 and {:+.0%} at 256, prompts by {:+.0%}",
        of_exact_mode,
    ),
    (
        "docs/operations.md",
        "after each of ten SIGKILLs all streams had ended UNAVAILABLE within {} s and all processes"
        " within {} s",
        lambda: of_lost_ranks("chaos-ranks"),
    ),
    (
        "docs/operations.md",
        "after a SIGKILL of each in turn within {} and {} s",
        lambda: of_lost_ranks("chaos-ranks-eight"),
    ),
    (
        "docs/operations.md",
        "after each of five SIGKILLs within {} and {} s",
        lambda: of_lost_ranks("chaos-ranks-cuda"),
    ),
]


@pytest.mark.parametrize(("page", "sentence", "figures"), SENTENCES)
def test_a_sentence_has_the_figures_of_its_file(
    page: str, sentence: str, figures: Callable[[], Iterable[float]]
) -> None:
    told = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert sentence.format(*figures()) in told


def test_the_table_of_two_cards_has_the_figures_of_its_file() -> None:
    told = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    for model in ("8B", "14B", "32B"):
        cells = [model]
        for workload in ("decode-b1", "decode-b64", "decode-b256", "prefill", "nano-256"):
            one, two = (value("large", model=model, workload=workload, ranks=n) for n in (1, 2))
            rate = workload in ("prefill", "nano-256")
            cells.append(
                f"{one:,.0f} to {two:,.0f} ({two / one:.2f})"
                if rate
                else f"{one:.1f} to {two:.1f} ({one / two:.2f})"
            )
        assert f"| {' | '.join(cells)} |" in told


def test_the_table_of_fleets_has_the_figures_of_its_files() -> None:
    told = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    fleets = rows("fleet") + rows("fleet-10000")
    for prefix in (row for row in fleets if row["routing"] == "prefix"):
        (in_turn,) = [
            row
            for row in fleets
            if (row["replicas"], row["routing"]) == (prefix["replicas"], "round_robin")
        ]
        assert (
            f"| {prefix['replicas']:,} | {prefix['hit_rate']:.2f} | {in_turn['hit_rate']:.2f}"
            f" | {prefix['ideal_hit_rate']:.2f} | {prefix['arrivals_seconds']:g} s"
            f" | {prefix['deaths']:,} | {prefix['streams_resumed']}, {prefix['streams_lost']} |"
        ) in told


def test_the_tables_have_the_figures_of_their_files() -> None:
    program = (sys.executable, ROOT / "tools/tables.py", "--check")
    assert subprocess.run(program, check=False).returncode == 0


def test_rows_of_the_log_are_short_numbered_and_have_the_paragraphs_that_they_announce() -> None:
    log = (ROOT / "docs/performance-log.md").read_text(encoding="utf-8")
    for subject in log.split("\n## ")[2:]:
        rows = [line[2:-2].split(" | ") for line in subject.split("\n") if line.startswith("| ")][
            1:
        ]
        assert all(len(cells) == 5 and max(map(len, cells)) <= 200 for cells in rows)
        numbers = [cells[0].strip("*") for cells in rows]
        assert numbers == [f"{numbers[0][0]}{n}" for n in range(1, len(rows) + 1)]
        announced = [cells[0] for cells in rows if cells[0].startswith("**")]
        assert announced == [f"**{n}**" for n in re.findall(r"^\*\*(\w\d+)\.\*\*", subject, re.M)]

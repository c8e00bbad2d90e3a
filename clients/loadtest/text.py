"""The figures of runs as rows of words: a column for each run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_ROWS = (
    ("requests completed", "completed", "{:,}"),
    ("requests failed", "failed", "{:,}"),
    ("duration, s", "duration", "{:.2f}"),
    ("requests/s", "request_throughput", "{:.2f}"),
    ("requests/s within limits", "request_goodput", "{:.2f}"),
    ("output tokens/s", "output_throughput", "{:,.1f}"),
    ("all tokens/s", "total_token_throughput", "{:,.1f}"),
    ("prompt tokens cached", "prefix_hit_rate", "{:.1%}"),
    ("most requests at once", "max_concurrent_requests", "{:,}"),
)
_LATENCIES = (("TTFT", "ttft"), ("TPOT", "tpot"), ("ITL", "itl"), ("end to end", "e2el"))
_PERCENTILES = (50, 90, 99)


def cells(runs: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Each row's name and its figure for each summary; rows without figures are left out."""
    for name, key, form in _ROWS:
        if any(run[key] is not None for run in runs):
            yield name, [_cell(run[key], form) for run in runs]
    for name, key in _LATENCIES:
        for q in _PERCENTILES:
            yield f"{name} p{q}, ms", [_cell(run[f"p{q}_{key}_ms"], "{:,.1f}") for run in runs]
    for status in sorted({status for run in runs for status in run["errors_by_status"]}):
        yield status, [_cell(run["errors_by_status"].get(status, 0), "{:,}") for run in runs]


def _cell(value: Any, form: str) -> str:
    return "–" if value is None else form.format(value)


def tables(runs: Sequence[tuple[str, Mapping[str, Any]]], console: "Console") -> "Iterator[Table]":
    """The same for a terminal, as many runs side by side as fit; nothing is cut. runs: title and
    summary of each."""
    shown = 0
    while shown < len(runs):
        count = 1
        while shown + count < len(runs) and _fits(_table(runs[shown:][: count + 1]), console):
            count += 1
        yield _table(runs[shown:][:count])
        shown += count


def _fits(table: "Table", console: "Console") -> bool:
    """Whether no word of it is folded."""
    from rich.measure import Measurement

    anything = console.options.update(width=1 << 16)
    return Measurement.get(console, anything, table).minimum <= console.width


def _table(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> "Table":
    from rich.table import Table

    grid = Table(title="Load test", title_justify="left")
    grid.add_column("", overflow="fold")
    for title, _ in runs:
        grid.add_column(title, justify="right", overflow="fold")
    for name, values in cells([summary for _, summary in runs]):
        grid.add_row(name, *values)
    return grid

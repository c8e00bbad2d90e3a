"""Pictures of the benchmarks' results: PNG and SVG into docs/img/, from the JSON (`make plots`).

    python tools/plots.py [--results benchmarks/results] [--into docs/img]

Invariant: a picture shows rows of one file and nothing else; its caption names the device and the
commit. Where a result has a floor (or a ceiling, for rates), it is drawn. Missing files are named.
"""

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:] = [p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "tools")]

import matplotlib as mpl  # noqa: E402

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "quire"  # equal figures give equal files

import matplotlib.pyplot as plt  # noqa: E402

Row = dict[str, Any]
Axes = Any
COLOURS = ("#0b6e99", "#d9480f", "#2b8a3e", "#862e9c", "#e67700", "#495057", "#c2255c", "#1098ad")
FLOOR = {"color": "#868e96", "linestyle": "--", "linewidth": 1.2}


def main() -> int:
    """Draw every file that is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "img")
    options = parser.parse_args()
    drawn = 0
    for path in sorted(options.results.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        draw = next((d for kind, d in DRAWINGS.items() if path.stem.startswith(kind)), None)
        rows = [row for row in document.get("rows", []) if row.get("value") is not None]
        if draw is None or not rows:
            print(f"{path.name}: nothing to draw")
            continue
        figure = draw(rows)
        save(figure, document, options.into / path.stem)
        drawn += 1
    for kind in DRAWINGS:
        if not list(options.results.glob(f"{kind}*.json")):
            print(f"{kind}: no results in {options.results}")
    return int(drawn == 0)


def save(figure: Any, document: Row, target: Path) -> None:
    """Write PNG and SVG, captioned with where the figures come from."""
    machine, versions = document.get("machine", {}), document.get("versions", {})
    device = machine.get("gpu") or machine.get("cpu") or "unknown device"
    commit, _, dirty = document.get("commit", "?").partition("+")
    commit = commit[:12] + (f"+{dirty}" if dirty else "")
    caption = f"{device}, torch {versions.get('torch')}, commit {commit}"
    figure.text(0.99, 0.005, caption, ha="right", va="bottom", fontsize=7, color="#495057")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    target.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "svg"):
        when = {"Date": None} if suffix == "svg" else None
        figure.savefig(f"{target}.{suffix}", dpi=160, metadata=when)
        print(f"wrote {target}.{suffix}")
    plt.close(figure)


# ---------------------------------------------------------------- lines


def lines(
    axes: Axes, series: dict[str, list[tuple[float, float]]], floors: dict[float, float]
) -> None:
    """One line an engine, on logarithmic axes, the floor dashed."""
    for index, (name, points) in enumerate(sorted(series.items())):
        points.sort()
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(*zip(*points, strict=True), marker="o", ms=4, color=colour, label=name)
    if floors:
        axes.plot(*zip(*sorted(floors.items()), strict=True), **FLOOR, label="floor")
    axes.set_xscale("log", base=2)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(fontsize=8)


def prefill(rows: Sequence[Row]) -> Any:
    """TFLOP/s of attention by length of the sequence."""
    figure, axes = plt.subplots(figsize=(8, 5))
    series: dict[str, list[tuple[float, float]]] = defaultdict(list)
    floors: dict[float, float] = {}
    for row in rows:
        found = re.fullmatch(r"prefill-attention-(\d+)x\d+", row["workload"])
        if found:
            series[row["engine"]].append((int(found[1]), row["value"]))
            floors[int(found[1])] = row["floor"]
    lines(axes, series, floors)
    axes.set(title="Causal prefill attention", xlabel="tokens per sequence", ylabel="TFLOP/s")
    return figure


def decode(rows: Sequence[Row]) -> Any:
    """Bandwidth of decode attention by batch, one panel a context."""
    panels: dict[int, list[tuple[int, Row]]] = defaultdict(list)
    for row in rows:
        found = re.fullmatch(r"decode-attention-b(\d+)-c(\d+)", row["workload"])
        if found and row["model"].startswith("16/8"):
            panels[int(found[2])].append((int(found[1]), row))
    contexts = sorted(panels)[:6] or [0]
    columns = min(3, len(contexts))
    shape = -(-len(contexts) // columns), columns
    figure, grid = plt.subplots(
        *shape, figsize=(4 * columns, 3.4 * shape[0]), sharey=True, squeeze=False
    )
    for axes, context in zip(grid.flat, contexts, strict=False):
        series: dict[str, list[tuple[float, float]]] = defaultdict(list)
        ceiling: dict[float, float] = {}
        for batch, row in panels[context]:
            series[row["engine"]].append((batch, row["tb_per_s"]))
            ceiling[batch] = row["tb_per_s"] / row["share_of_floor"]
        if series:
            lines(axes, series, ceiling)
        axes.set(title=f"context {context}", xlabel="batch", ylabel="TB/s")
    for axes in list(grid.flat)[len(contexts) :]:
        axes.set_visible(False)
    figure.suptitle("Paged decode attention: bandwidth of reading keys and values")
    return figure


# ---------------------------------------------------------------- bars


def bars(axes: Axes, rows: Sequence[Row], labels: Sequence[str], unit: str) -> None:
    """One bar a row with its value and share of the floor; the floor as a mark across it."""
    places = range(len(rows))
    axes.barh(places, [row["value"] for row in rows], color=COLOURS[0], height=0.6)
    for place, row in zip(places, rows, strict=True):
        note = f" {row['value']:,.0f}" if row["value"] >= 1000 else f" {row['value']:.3g}"
        if row.get("floor"):
            axes.plot([row["floor"]] * 2, [place - 0.4, place + 0.4], color=COLOURS[1], lw=2)
            note += f" ({row['share_of_floor']:.0%} of floor)"
        axes.text(max(row["value"], row.get("floor") or 0), place, note, va="center", fontsize=7)
    axes.set_yticks(list(places), labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.35)
    axes.set_xlabel(f"{unit} (mark: floor)" if any(r.get("floor") for r in rows) else unit)
    axes.grid(visible=True, axis="x", alpha=0.3)


def panels_of_bars(
    groups: Iterable[tuple[str, Sequence[Row]]], label: Callable[[Row], str], title: str
) -> Any:
    """A panel of bars for each group of rows that share a unit."""
    found = [(name, list(rows)) for name, rows in groups]
    heights = [max(1.6, 0.32 * len(rows) + 1) for _, rows in found]
    figure, grid = plt.subplots(
        len(found), 1, figsize=(9, sum(heights)), squeeze=False, height_ratios=heights
    )
    for axes, (name, rows) in zip(grid.flat, found, strict=True):
        bars(axes, rows, [label(row) for row in rows], rows[0]["unit"])
        axes.set_title(name, fontsize=9, loc="left")
    figure.suptitle(title)
    return figure


def _grouped(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _by_batch(pair: tuple[tuple[str, str], Any]) -> tuple[str, int]:
    """A kernel's name, then its rows: 8 before 64."""
    kernel, _, batch = pair[0][0].rpartition("-b")
    return kernel, int(batch)


def kernels(rows: Sequence[Row]) -> Any:
    """Speed of each kernel against what it replaces: times faster, by kernel and rows."""
    pairs: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        pairs[row["workload"], row["model"]][row["engine"]] = row
    figure, axes = plt.subplots(figsize=(9, max(3, 0.22 * len(pairs) + 1)))
    names, shares, times = [], [], []
    for (workload, model), both in sorted(pairs.items(), key=_by_batch):
        if {"quire", "torch"} <= both.keys():
            names.append(f"{workload.removeprefix('kernel-')}, {model}")
            shares.append(both["quire"]["share_of_floor"] or 0.0)
            times.append(both["torch"]["value"] / both["quire"]["value"])
    places = list(range(len(names)))
    axes.barh(places, times, color=COLOURS[0], height=0.65)
    axes.axvline(1.0, **FLOOR)
    for place, (ratio, share) in enumerate(zip(times, shares, strict=True)):
        axes.text(ratio, place, f" {ratio:.2f} ({share:.0%} of floor)", va="center", fontsize=6)
    axes.set_yticks(places, names, fontsize=6)
    axes.invert_yaxis()
    axes.margins(x=0.25, y=0.01)
    axes.set(title="Kernels: speed-up over PyTorch", xlabel="times as fast (dashed: equally fast)")
    return figure


def offline(rows: Sequence[Row]) -> Any:
    """Each workload of a model against its floor, by unit."""
    groups = _grouped(rows, lambda row: row["unit"])
    return panels_of_bars(
        sorted(groups.items()),
        lambda row: f"{row['workload']}, {row['model']}, {row['engine']}",
        "Offline workloads",
    )


def host(rows: Sequence[Row]) -> Any:
    """Host time of each part of a step, stacked by batch; the device's gap beside it."""
    figure, axes = plt.subplots(figsize=(7, 4.2))
    batches = sorted({row["workload"] for row in rows}, key=lambda name: int(name.split("-b")[1]))
    below = [0.0] * len(batches)
    for index, part in enumerate(("schedule", "launch", "apply", "hand over")):
        values = [
            next((r["value"] for r in rows if (r["workload"], r["part"]) == (name, part)), 0.0)
            for name in batches
        ]
        axes.bar(batches, values, bottom=below, color=COLOURS[index], label=part, width=0.5)
        below = [a + b for a, b in zip(below, values, strict=True)]
    gaps = {row["workload"]: row["value"] for row in rows if row["part"] == "gap"}
    for place, name in enumerate(batches):
        note = f"{below[place]:.0f} us\ngap {gaps.get(name, 0.0):.0f} us"
        axes.text(place, below[place], note, ha="center", va="bottom", fontsize=8)
    axes.margins(y=0.25)
    axes.set(title="Host time of a decode step", ylabel="us")
    axes.legend(fontsize=8, loc="upper left")
    return figure


def fleet(rows: Sequence[Row]) -> Any:
    """What simulated fleets find cached, and how long calls wait, by routing."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2))
    counts = sorted({row["replicas"] for row in rows})
    for index, routing in enumerate(sorted({row["routing"] for row in rows})):
        mine = [row for row in rows if row["routing"] == routing]
        places = [counts.index(row["replicas"]) + 0.4 * index - 0.2 for row in mine]
        look = {"width": 0.36, "color": COLOURS[index], "label": routing.replace("_", " ")}
        left.bar(places, [row["hit_rate"] for row in mine], **look)
        right.bar(places, [row["wait_p99_ms"] for row in mine], **look)
    for row in rows:
        place, ideal = counts.index(row["replicas"]), row["ideal_hit_rate"]
        left.plot((place - 0.4, place + 0.4), (ideal, ideal), **FLOOR)
    for axes in (left, right):
        axes.set_xticks(range(len(counts)), [f"{count:,} replicas" for count in counts])
        axes.margins(y=0.2)
        axes.legend(fontsize=8, loc="upper right")
    left.set(
        title="Prefix cache hit rate (dashed: one unlimited cache, whole blocks)", ylabel="hit rate"
    )
    left.title.set_fontsize(9)
    right.set(title="Queue time, p99", ylabel="ms, simulated")
    right.title.set_fontsize(9)
    return figure


DRAWINGS: dict[str, Callable[[Sequence[Row]], Any]] = {
    "prefill": prefill,
    "decode": decode,
    "kernels": kernels,
    "offline": offline,
    "host": host,
    "fleet": fleet,
}


if __name__ == "__main__":
    sys.exit(main())

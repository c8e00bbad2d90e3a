"""The report of a load test: one HTML file with its figures and pictures inside.

Invariant: the file refers to nothing outside itself, and every word in it that came from elsewhere
(a model's name, a server's message) is escaped.
"""

import base64
import html
import importlib.util
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from quire.clients.errors import ClientError, OptionError
from quire.clients.loadtest.drive import Outcome
from quire.clients.loadtest.record import Record
from quire.clients.loadtest.text import cells

_BINS = 60
_COLOURS = ("#2f6f8f", "#c8553d", "#6a994e", "#8e6bbf", "#d9a441", "#3d405b", "#b56576", "#4a7c59")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2.5rem auto; max-width: 62rem; padding: 0 1rem;
       color: #22272e; background: #fcfcfa; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.about { color: #667; margin-top: .2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; text-align: right; border-bottom: 1px solid #e4e4de; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } .warn { background: #fdf1e3; padding: .6rem .9rem; }
"""


class Run(Protocol):
    """One run of the sweep."""

    @property
    def step(self) -> Any: ...
    @property
    def summary(self) -> dict[str, Any]: ...
    @property
    def outcome(self) -> Outcome: ...


def check(path: Path) -> None:
    """Says before the run, not after it, that a report cannot be written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ClientError("the report needs matplotlib: pip install '.[loadtest]'")
    if not path.resolve().parent.is_dir():
        raise OptionError(f"report: no directory {path.resolve().parent}")
    if path.is_dir():
        raise OptionError(f"report: {path} is a directory")


def write(path: Path, runs: Sequence[Run]) -> None:
    """Writes the report; needs matplotlib."""
    pictures = [(title, about, _picture(draw, runs)) for title, about, draw in _chosen(runs)]
    path.write_text(_page(runs, pictures), encoding="utf-8")


Draw = Callable[[Any, Sequence[Run]], None]


def _chosen(runs: Sequence[Run]) -> list[tuple[str, str, Draw]]:
    found: list[tuple[str, str, Draw]] = []
    if len(runs) > 1:
        found.append(("Latency over load", "p50, p90 and p99 of each run.", _over_load))
    found += [
        ("Distribution", "Share of the requests (ITL: of the gaps) at most so slow.", _spread),
        ("Throughput over time", "Output tokens a second as they arrived.", _throughput),
        ("Cache hits over time", "Share of prompt tokens found in the prefix cache.", _hits),
    ]
    return found


def _picture(draw: Draw, runs: Sequence[Run]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), dpi=110, layout="constrained")
    draw(figure, runs)
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _measured(run: Run) -> list[Record]:
    return [r for r in run.outcome.records if not r.warmup and r.completed]


def _colour(i: int) -> str:
    return _COLOURS[i % len(_COLOURS)]


def _load(run: Run) -> float:
    rate = run.summary["request_rate"]
    if isinstance(rate, float | int):
        return float(rate)
    return float(run.summary["max_concurrency"] or math.nan)


def _over_load(figure: Any, runs: Sequence[Run]) -> None:
    closed = runs[0].summary["arrivals"] == "closed"
    for axes, (name, key) in zip(
        figure.subplots(1, 3),
        (("TTFT", "ttft"), ("ITL", "itl"), ("end to end", "e2el")),
        strict=True,
    ):
        for i, q in enumerate((50, 90, 99)):
            points = sorted((_load(r), r.summary[f"p{q}_{key}_ms"] or math.nan) for r in runs)
            axes.plot(*zip(*points, strict=True), marker="o", label=f"p{q}", color=_colour(i))
        axes.set(
            title=f"{name}, ms", xlabel="concurrency" if closed else "sessions/s", ylim=(0, None)
        )
    figure.axes[0].legend()


_PICKS: tuple[tuple[str, Callable[[Record], list[float]]], ...] = (
    ("TTFT", lambda r: [r.ttft]),
    ("ITL", lambda r: r.gaps),
    ("end to end", lambda r: [r.latency]),
)


def _spread(figure: Any, runs: Sequence[Run]) -> None:
    for axes, (name, pick) in zip(figure.subplots(1, 3, sharey=True), _PICKS, strict=True):
        for i, run in enumerate(runs):  # a line a run
            values = sorted(1e3 * v for r in _measured(run) for v in pick(r))
            share = [(k + 1) / len(values) for k in range(len(values))]
            axes.plot(values, share, drawstyle="steps-post", color=_colour(i), label=str(run.step))
        axes.set(title=f"{name}, ms", xlim=(0, None), ylim=(0, 1.02))
    figure.axes[-1].legend(fontsize="small")


def _bins(records: Sequence[Record]) -> tuple[float, int]:
    """Width of a bin in seconds, and how many."""
    end = max((r.ended for r in records), default=0.0)
    width = max(end / _BINS, 1e-3)
    return width, int(end / width) + 1


def _throughput(figure: Any, runs: Sequence[Run]) -> None:
    axes = figure.subplots()
    for i, run in enumerate(runs):
        records = _measured(run)
        width, count = _bins(records)
        tokens = [0.0] * count
        for record in records:
            for time, number in zip(record.times, record.counts, strict=True):
                tokens[min(int(time / width), count - 1)] += number / width
        times = [width * (k + 0.5) for k in range(count)]
        axes.plot(times, tokens, color=_colour(i), label=str(run.step))
    axes.set(xlabel="seconds from the start", ylabel="tokens/s", ylim=(0, None), xlim=(0, None))
    axes.legend(fontsize="small")


def _hits(figure: Any, runs: Sequence[Run]) -> None:
    axes = figure.subplots()
    for i, run in enumerate(runs):
        records = _measured(run)
        width, count = _bins(records)
        asked, found = [0] * count, [0] * count
        for record in records:
            place = min(max(int(record.sent / width), 0), count - 1)
            asked[place] += record.prompt_tokens
            found[place] += record.cached_tokens
        points = [
            (width * (k + 0.5), f / a)
            for k, (a, f) in enumerate(zip(asked, found, strict=True))
            if a
        ]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", color=_colour(i), label=str(run.step))
            axes.legend(fontsize="small")
    axes.set(xlabel="seconds from the start", ylabel="share", ylim=(0, 1.02), xlim=(0, None))


def _page(runs: Sequence[Run], pictures: Sequence[tuple[str, str, str]]) -> str:
    first = runs[0].summary
    about = (
        f"{first['model_id']}, workload {first['workload']}, {first['num_prompts']} requests a run,"
        f" arrivals {first['arrivals']}, {first['date']}"
    )
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'>",
        f"<title>Quire load test</title><style>{_STYLE}</style>",
        f"<h1>Quire load test</h1><p class='about'>{html.escape(about)}</p>",
        *_warnings(runs),
        _table([(str(run.step), run.summary) for run in runs]),
    ]
    for title, text, png in pictures:
        image = f"<img alt='{html.escape(title)}' src='data:image/png;base64,{png}'>"
        parts.append(
            f"<h2>{html.escape(title)}</h2><p class='about'>{html.escape(text)}</p>{image}"
        )
    parts.append(
        "<p class='about'>Latencies count from the intended start of each request; warm-up is left"
        " out. ITL is the time between consecutive messages with tokens.</p></html>"
    )
    return "\n".join(parts)


def _warnings(runs: Sequence[Run]) -> list[str]:
    return [
        f"<p class='warn'>{html.escape(str(run.step))}: the client was the limit:"
        f" {html.escape(sign)}</p>"
        for run in runs
        for sign in run.summary["client_limits"]
    ]


def _table(runs: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for title, _ in runs)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in (name, *values)) + "</tr>"
        for name, values in cells([summary for _, summary in runs])
    )
    return f"<table><tr><th></th>{head}</tr>{body}</table>"

"""`quire loadtest`: load from one or several client processes, and what came of it."""

import json
import math
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quire.clients.commands import common
from quire.clients.connection import DEFAULT_ADDRESS
from quire.clients.errors import OptionError
from quire.clients.loadtest.load_plan import TRACED, WORKLOADS, Plan, Step, steps_of

if TYPE_CHECKING:
    from quire.clients.loadtest.drive import Outcome, Target
    from quire.clients.loadtest.workload import Session

_WORK = "What is sent"
_WHEN = "When"


def _option(text: str, panel: str, *names: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(*names, help=text, rich_help_panel=panel)
    return option


@common.one_line_errors
def loadtest(
    context: typer.Context,
    workload: Annotated[str, _option(f"One of {', '.join(WORKLOADS)}.", _WORK)] = "random",
    requests: Annotated[
        int | None,
        _option("Sessions to send (random, chat: default 100; trace: its first ones).", _WORK),
    ] = None,
    prompt_tokens: Annotated[str, _option("Length or LOW:HIGH (random, chat).", _WORK)] = "128",
    output_tokens: Annotated[str, _option("Length or LOW:HIGH.", _WORK)] = "64",
    prefix_share: Annotated[
        float, _option("Share of each prompt that all have in common (random).", _WORK)
    ] = 0.0,
    groups: Annotated[int, _option("Number of groups (shared-prefix).", _WORK)] = 8,
    prompts_per_group: Annotated[int, _option("Prompts per group (shared-prefix).", _WORK)] = 16,
    prefix_tokens: Annotated[str, _option("Length of each prefix (shared-prefix).", _WORK)] = "256",
    question_tokens: Annotated[
        str, _option("Length of what follows it (shared-prefix).", _WORK)
    ] = "32",
    turns: Annotated[int, _option("Turns per session (chat).", _WORK)] = 4,
    trace: Annotated[
        Path | None, _option("JSONL: text, messages or token_count; max_tokens; time.", _WORK)
    ] = None,
    temperature: Annotated[float, _option("0: greedy.", _WORK)] = 0.0,
    ignore_eos: Annotated[bool, _option("Make every output as long as asked.", _WORK)] = True,
    ids_only: Annotated[bool, _option("Ask for ids instead of text.", _WORK, "--ids-only")] = False,
    reuse_cache: Annotated[
        bool,
        _option("Let later runs hit prefixes that earlier ones cached.", _WORK, "--reuse-cache"),
    ] = False,
    seed: Annotated[int, _option("Seed of lengths, ids and arrivals.", _WORK)] = 0,
    concurrency: Annotated[
        list[int] | None,
        _option(
            "Closed loop: sessions at once (default 8); repeat for more runs. With --rate: a cap.",
            _WHEN,
        ),
    ] = None,
    rate: Annotated[
        list[float] | None,
        _option("Open loop: sessions per second; repeat for more runs.", _WHEN),
    ] = None,
    arrivals: Annotated[
        str | None,
        _option(
            "With --rate: constant, poisson (default) or gamma. A trace has its own times.", _WHEN
        ),
    ] = None,
    burstiness: Annotated[float, _option("Shape of gamma; below 1: bursty.", _WHEN)] = 1.0,
    speed: Annotated[float, _option("Replay a trace this many times as fast.", _WHEN)] = 1.0,
    warmup: Annotated[int, _option("First sessions to leave out of the figures.", _WHEN)] = 0,
    processes: Annotated[int, _option("Client processes.", _WHEN)] = 1,
    goodput: Annotated[
        list[str] | None,
        typer.Option(help="Limit in ms: ttft:500, tpot:50, itl:80 or e2el:5000; may be repeated."),
    ] = None,
    as_json: common.AsJson = False,
    detailed: Annotated[
        bool, typer.Option("--detailed", help="Include each request's figures in the JSON.")
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report here.")] = None,
    address: common.Address = None,
    routing: common.Routing = None,
    api_key: common.ApiKey = None,
    tls: common.UseTLS = False,
    tls_ca: common.RootFile = None,
    tls_cert: common.CertFile = None,
    tls_key: common.KeyFile = None,
    tls_server_name: common.ServerName = None,
    timeout: common.Timeout = None,
) -> None:
    """Put load on a server, and report its throughput and latencies."""
    from quire.clients.loadtest import unread_options
    from quire.clients.loadtest.summary import parse_limits
    from quire.clients.loadtest.workload import Span

    plan = Plan(
        workload=workload,
        requests=requests,
        prompt=Span.parse("prompt-tokens", prompt_tokens),
        output=Span.parse("output-tokens", output_tokens),
        prefix_share=prefix_share,
        groups=groups,
        prompts_per_group=prompts_per_group,
        prefix=Span.parse("prefix-tokens", prefix_tokens),
        question=Span.parse("question-tokens", question_tokens),
        turns=turns,
        trace=trace,
        arrivals=arrivals or "poisson",
        burstiness=burstiness,
        speed=speed,
        warmup=warmup,
        processes=processes,
        seed=seed,
        reuse_cache=reuse_cache,
        options={
            "temperature": temperature,
            "ignore_eos": ignore_eos or None,
            "ids_only": ids_only or None,
        },
    )
    unread_options.check(common.given(context), workload, plan.arrivals, as_json=as_json)
    limits = parse_limits(goodput or [])
    if arrivals not in (None, TRACED) and not rate:
        raise OptionError("arrivals: only with --rate; a closed loop has no arrivals")
    steps = list(steps_of(plan, concurrency or [], rate or []))
    if report is not None:
        from quire.clients.loadtest.report import check

        check(report)
    secure = common.make_tls(tls, tls_ca, tls_cert, tls_key, tls_server_name)
    first = 10 if timeout is None else timeout
    with common.connected(address, api_key, secure, first, routing=routing) as client:
        model = client.stats().model
    target = _target(address, api_key, secure, timeout, model.vocab_size, routing)
    sessions = plan.sessions(model.max_model_len)
    runs = [_run(plan, step, sessions, target, model.name, limits, detailed) for step in steps]
    _tell(runs, as_json, report)


@dataclass(frozen=True, slots=True)
class Run:
    """One run: its description, its figures, its records."""

    step: Step
    summary: dict[str, Any]
    outcome: "Outcome"


def _target(
    address: Sequence[str] | None,
    api_key: str | None,
    tls: Any,
    timeout: float | None,
    vocab_size: int,
    routing: str | None,
) -> "Target":
    from quire.clients.loadtest.drive import Target

    where = list(address) if address else [DEFAULT_ADDRESS]
    return Target(where, api_key, tls or None, timeout, vocab_size, routing)


def _run(
    plan: Plan,
    step: Step,
    sessions: "Sequence[Session]",
    target: "Target",
    model: str,
    limits: Mapping[str, float],
    detailed: bool,
) -> Run:
    from quire.clients.loadtest import arrivals, drive
    from quire.clients.loadtest.summary import summarize

    starts: list[float] | None = None
    if plan.arrivals == TRACED:
        starts = arrivals.traced_starts(sessions, plan.speed)
    elif step.rate is not None:
        starts = arrivals.intended_starts(
            plan.arrivals, step.rate, plan.burstiness, len(sessions), plan.seed
        )
    salt = None if plan.reuse_cache else f"loadtest-{secrets.token_hex(8)}"
    load = drive.Load(
        sessions,
        starts,
        step.concurrency,
        plan.warmup,
        plan.processes,
        plan.seed,
        {**plan.options, "cache_salt": salt},
    )
    total = sum(len(session.turns) for session in sessions)
    with _progress(str(step), total) as progress:
        outcome = drive.run(target, load, progress)
    head = _head(plan, step, model, total)
    return Run(step, {**head, **summarize(outcome, limits, detailed)}, outcome)


def _head(plan: Plan, step: Step, model: str, total: int) -> dict[str, Any]:
    closed = step.rate is None
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": "quire.v1",
        "backend": "quire",
        "label": str(step),
        "model_id": model,
        "tokenizer_id": model,
        "workload": plan.workload,
        "num_prompts": total,
        "warmup": plan.warmup,
        "arrivals": "closed" if closed else plan.arrivals,
        "request_rate": "inf" if closed else None if math.isnan(step.rate or 0) else step.rate,
        "burstiness": plan.burstiness,
        "max_concurrency": step.concurrency,
        "seed": plan.seed,
    }


@contextmanager
def _progress(title: str, total: int) -> Iterator[Callable[[int], None] | None]:
    """A bar on standard error, where someone watches."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


def _tell(runs: Sequence[Run], as_json: bool, report: Path | None) -> None:
    """Print the figures and write the report. Fails where a run has completed nothing."""
    _print(runs, as_json)
    if report is not None:
        _write_report(report, runs)
    if any(run.summary["completed"] == 0 for run in runs):
        common.fail(_why_nothing(runs))


def _write_report(path: Path, runs: Sequence[Run]) -> None:
    from quire.clients.loadtest.report import write

    try:
        write(path, runs)
    except OSError as error:
        common.fail(f"report: {path}: {error.strerror}")
    print(f"report: {path}", file=sys.stderr)


def _print(runs: Sequence[Run], as_json: bool) -> None:
    if as_json:
        plain = [run.summary for run in runs]
        print(json.dumps(plain[0] if len(plain) == 1 else {"runs": plain}, indent=2))
        return
    from rich.console import Console

    from quire.clients.loadtest.text import tables

    console = Console()
    for table in tables([(str(run.step), run.summary) for run in runs], console):
        console.print(table)
    for run in runs:
        for sign in run.summary["client_limits"]:
            print(f"quire: {run.step}: the client was the limit: {sign}", file=sys.stderr)


def _why_nothing(runs: Sequence[Run]) -> str:
    for run in runs:
        for record in run.outcome.records:
            if record.message:
                return f"no request completed; the first said {record.status}: {record.message}"
    return "no request completed"

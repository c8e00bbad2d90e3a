"""`quire batch`: a file of requests in OpenAI's batch format, answered into a file of results.

Invariant: whatever ends it, the same command goes on where it ended; it exits with 0 exactly if
every request has its line. Results go to the file, everything that is said to standard error.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quire.clients.async_client import AsyncClient
from quire.clients.batch.own_server import own_server
from quire.clients.batch.requests import RequestFile
from quire.clients.batch.results import ResultFile
from quire.clients.batch.run import Plan, Run
from quire.clients.commands import common
from quire.clients.commands.terminal import report
from quire.clients.connection import TLS, Connection
from quire.clients.errors import ClientError, OptionError

if TYPE_CHECKING:
    from rich.progress import Progress

DEFAULT_MODEL = "pocket"


@common.one_line_errors
def batch(
    requests: Annotated[
        Path, typer.Option("--input", "-i", help="JSON lines: custom_id, method, url, body.")
    ],
    results: Annotated[
        Path, typer.Option("--output", "-o", help="Results; an existing file is resumed.")
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- SERVE_OPTIONS]", help="Options of `quire serve`."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help=f"Model to run without --address (default: {DEFAULT_MODEL})."),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", help="Concurrent requests.", min=1, max=4096)
    ] = 64,
    away: Annotated[
        float, typer.Option(help="How long to wait for an unreachable server, in seconds.", min=0)
    ] = 60.0,
    address: common.AddressOrNone = None,
    api_key: common.ApiKey = None,
    tls: common.UseTLS = False,
    tls_ca: common.RootFile = None,
    tls_cert: common.CertFile = None,
    tls_key: common.KeyFile = None,
    tls_server_name: common.ServerName = None,
    timeout: common.Timeout = None,
) -> None:
    """Answer a file of requests; run it again to resume.

    With --address a server answers. Without, this starts one of its own for the file, on a free
    port of this machine's loopback, with the model of --model and the options behind `--`.
    """
    if address and (model is not None or words):
        raise OptionError(
            "--model and options after -- are for a server that this starts: no --address"
        )
    if requests.resolve() == results.resolve():
        raise OptionError("--output: is the same file as --input")
    asked = RequestFile(requests)
    told = ResultFile(results, asked)
    secure = common.make_tls(tls, tls_ca, tls_cert, tls_key, tls_server_name)
    job = _Job(asked, told, api_key, secure, timeout, Plan(concurrency, away))
    try:
        with contextlib.closing(told):
            _tell_beginning(asked, told)
            job.answer_rest(address, [model or DEFAULT_MODEL, *(words or ())])
    except OSError as error:
        raise ClientError(f"{results}: {error.strerror or error}") from None
    _tell_end(told)


@dataclass(frozen=True, slots=True)
class _Job:
    """A run and how it reaches its server."""

    asked: RequestFile
    told: ResultFile
    api_key: str | None
    tls: TLS | bool
    timeout: float | None
    plan: Plan

    def answer_rest(self, address: list[str] | None, serve: list[str]) -> None:
        """Send the requests that have no result yet. address: None: start a server with these
        arguments."""
        if len(self.told.done) == len(self.asked):
            return
        server = contextlib.nullcontext(address) if address else own_server(serve)
        with server as at, _left(self.asked, self.told):
            self.run(at)

    def run(self, address: str | list[str]) -> None:
        """Run it in an event loop of its own."""
        with common.errors_at(Connection(address, api_key=self.api_key, tls=self.tls)):
            asyncio.run(self._run(address))

    async def _run(self, address: str | list[str]) -> None:
        client = AsyncClient(address, api_key=self.api_key, tls=self.tls, timeout=self.timeout)
        async with client:
            with _progress(len(self.told.done), len(self.asked)) as done:
                await Run(client, self.asked, self.told, self.plan, done).run()


@contextlib.contextmanager
def _left(asked: RequestFile, told: ResultFile) -> Iterator[None]:
    """Reports how far a run has come that ends early."""
    try:
        yield
    finally:
        left = len(asked) - len(told.done)
        if left:
            report(f"{left} of {len(asked)} requests are left: run the command again to go on")


@contextlib.contextmanager
def _progress(done: int, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on a terminal. Yields a function to call for each result."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda: None
        return
    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        yield _advancing(bar, done, total)


def _advancing(bar: "Progress", done: int, total: int) -> Callable[[], None]:
    task = bar.add_task("requests", total=total, completed=done)
    return lambda: bar.advance(task)


def _tell_beginning(asked: RequestFile, told: ResultFile) -> None:
    if told.cut:
        report(f"{told.path}: its last line was cut short, and is asked for again")
    if told.done:
        report(f"{len(told.done)} of {len(asked)} requests have their result already")


def _tell_end(told: ResultFile) -> None:
    bad = f", {told.errors} of them errors" if told.errors else ""
    plural = "" if len(told.done) == 1 else "s"
    report(f"{told.path}: {len(told.done)} result{plural}{bad}")

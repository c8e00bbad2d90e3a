"""Sends every request that has no result yet, several at a time.

Invariant: a line gets its result when that is certain: an answer, or an error that retrying would
not change. Temporary problems (no room, a server that is away, a stream that broke) are retried; if
they last, the run ends and the line has no result, so that the next run sends it again.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from quire.clients.async_client import AsyncClient
from quire.clients.batch.requests import Line, RequestFile
from quire.clients.batch.results import ID, SYNC_SECONDS, ResultFile
from quire.clients.errors import (
    CallError,
    Cancelled,
    DeadlineExceeded,
    Overloaded,
    Unauthenticated,
    Unavailable,
)
from quire.clients.openai.errors import error_of, status_of
from quire.clients.openai.faults import BadBody, joined
from quire.clients.openai.field_names import Names
from quire.clients.openai.parsed_body import ParsedBody
from quire.v1 import inference_pb2 as pb

_PASSING = (Overloaded, Unavailable, Cancelled)
Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """concurrency: requests in flight. away_seconds: how long a server may be away. again_seconds:
    the pause before a request is retried that met a server that was away or full."""

    concurrency: int = 64
    away_seconds: float = 60.0
    again_seconds: float = 1.0


class Run:
    """The run over one file, against one server."""

    def __init__(
        self,
        client: AsyncClient,
        requests: RequestFile,
        results: ResultFile,
        plan: Plan,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """done: told of each result that was written."""
        self._client = client
        self._requests = requests
        self._results = results
        self._plan = plan
        self._done = done
        self._model = ""
        self._away_since: float | None = None  # the loop's time

    async def run(self) -> None:
        """Returns when each line has its result. Raises CallError where the server stays away or
        knows no key of ours, OSError where results cannot be written."""
        self._model = (await self._client.model_info()).model.name
        lines = self._requests.lines(set(self._results.done))
        try:
            async with asyncio.TaskGroup() as group:
                syncing = group.create_task(self._keep_synced())
                workers = range(self._plan.concurrency)
                await asyncio.wait([group.create_task(self._work(lines)) for _ in workers])
                syncing.cancel()
        except BaseExceptionGroup as several:
            raise _first(several) from None

    async def _work(self, lines: Iterator[Line]) -> None:
        """One line after the other."""
        for line in lines:
            result = await self._result(line)
            self._results.add(line.custom_id, result)
            self._done()

    async def _keep_synced(self) -> None:
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            await asyncio.to_thread(self._results.sync)

    # ------------------------------------------------------------ one line

    async def _result(self, line: Line) -> Result:
        name = secrets.token_hex(12)
        try:
            parsed = line.parsed()
        except BadBody as bad:
            error = error_of(400, str(bad), "INVALID_FIELD", bad.faults[0].field)
            return _answered(name, line, 400, {"error": error})
        parsed.name(name)
        try:
            return _answered(name, line, 200, await self._answer(name, line, parsed))
        except DeadlineExceeded as error:
            return _failed(name, line, "deadline_exceeded", error.message)
        except _Refused as refused:
            return _answered(name, line, *refused_body(refused.error, refused.names))

    async def _answer(self, name: str, line: Line, parsed: ParsedBody) -> dict[str, Any]:
        """The answer's body; retries while the problem may be temporary. Several prompts are sent
        one after another: the file's other lines fill the server."""
        answer = line.endpoint.answer(self._model, parsed)
        for place, request in enumerate(parsed.requests):
            for message in await self._messages(request, parsed.names(place)):
                parsed.place(message, place, name)
                answer.take(message)
        return answer.whole()

    async def _messages(
        self, request: pb.GenerateRequest, names: Names
    ) -> list[pb.GenerateResponse]:
        """All of a call that ended well."""
        while True:
            try:
                messages = [one async for one in self._client.send(request).messages()]
            except _PASSING as error:
                await self._wait_or_raise(error)
            except (DeadlineExceeded, Unauthenticated):
                raise
            except CallError as error:
                raise _Refused(error, names) from None
            else:
                self._away_since = None
                return messages

    async def _wait_or_raise(self, error: CallError) -> None:
        now = asyncio.get_running_loop().time()
        if isinstance(error, Overloaded):
            self._away_since = None
        elif self._away_since is None:
            self._away_since = now
        if self._away_since is not None and now - self._away_since >= self._plan.away_seconds:
            raise error
        await asyncio.sleep(max(error.details.retry_after or 0.0, self._plan.again_seconds))


class _Refused(Exception):
    """One of a line's calls was. names: of its body."""

    def __init__(self, error: CallError, names: Names) -> None:
        super().__init__(str(error))
        self.error = error
        self.names = names


def refused_body(error: CallError, names: Names) -> tuple[int, Result]:
    """The HTTP status and body for a refusal of one request."""
    details = error.details
    reason = details.reason or error.code.name
    faults = names.faults((one.field, one.description) for one in details.violations)
    plain = error.code is not grpc.StatusCode.INVALID_ARGUMENT or not faults
    status = status_of(error.code.name, reason)
    told = error.message if plain else joined(faults)
    param = faults[0].field if faults else None
    return status, {"error": error_of(status, told, reason, param)}


def _first(several: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended a run: one of those that all workers may have met."""
    error = several.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _answered(name: str, line: Line, status: int, body: dict[str, Any]) -> Result:
    response = {"status_code": status, "request_id": name, "body": body}
    return _line(name, line, response, None)


def _failed(name: str, line: Line, code: str, message: str) -> Result:
    return _line(name, line, None, {"code": code, "message": message})


def _line(name: str, line: Line, response: Result | None, error: Result | None) -> Result:
    return {
        "id": f"{ID}{name}",
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }

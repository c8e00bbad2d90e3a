"""The source of the page's numbers: one server, called with the viewer's own key.

Invariant: however many pages are open, the server is called once in `fresh` seconds at most. What
the key may not see is left out and said; a call that fails becomes a sentence, never an exception.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from quire.clients.client import Client
from quire.clients.errors import OPERATORS_ONLY, CallError, Overloaded, Unauthenticated
from quire.clients.watch.snapshot import as_plain
from quire.v1 import inference_pb2 as pb

FRESH = 0.4
"""Seconds for which a snapshot serves. A server gives 4 block maps a second, to all that ask."""
PATIENCE = 10.0  # seconds that an answer may take


class Source:
    """Thread-safe."""

    def __init__(
        self,
        client: Client,
        explain: Callable[[CallError], str],
        clock: Callable[[], float] = time.monotonic,
        fresh: float = FRESH,
    ) -> None:
        """explain: the sentence for a failed call."""
        self._client = client
        self._explain = explain
        self._clock = clock
        self._fresh = fresh
        self._lock = threading.Lock()
        self._operator = True  # until the server says otherwise
        self._last: tuple[float, dict[str, Any]] | None = None
        self._last_map = b""

    def look(self) -> dict[str, Any]:
        """A snapshot (see as_plain), or {"error": a sentence that says what to do}."""
        with self._lock:
            now = self._clock()
            if self._last is None or now - self._last[0] >= self._fresh:
                self._last = now, self._ask()
            return self._last[1]

    def _ask(self) -> dict[str, Any]:
        try:
            return as_plain(self.stats(), operator=self._operator)
        except CallError as error:
            return {"error": self._explain(error)}

    def stats(self) -> pb.StatsResponse:
        """The statistics that the key may see. Raises CallError."""
        if not self._operator:
            return self._client.stats(timeout=PATIENCE)
        try:
            stats = self._client.stats(
                include_block_map=True, include_requests=True, timeout=PATIENCE
            )
        except Unauthenticated as error:
            if error.details.reason != OPERATORS_ONLY:
                raise
            self._operator = False
            return self._client.stats(timeout=PATIENCE)
        except Overloaded:  # others ask for maps as well: the last one stays
            stats = self._client.stats(include_requests=True, timeout=PATIENCE)
            stats.cache.block_map = self._last_map
        self._last_map = stats.cache.block_map
        return stats

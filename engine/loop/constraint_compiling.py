"""Requests whose constraints are still being compiled. They wait here, outside every queue.

Invariant: compiling, and replaying resumed outputs through a matcher, happen on threads of their
own, so no step waits for a grammar. Only the engine's thread calls these methods. A request leaves
once: to the scheduler, with an error, or dropped.
"""

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from quire.engine.errors import RequestError
from quire.engine.request import GenerationRequest, Vocabulary
from quire.engine.scheduling.matching import Constrained, Matchers, constrained

THREADS = 2

Compiled = Future[list[Constrained]]


class Compiling:
    """Holds requests until their matchers exist. matchers: compiles constraints; None if there are
    none."""

    def __init__(self, matchers: Matchers | None) -> None:
        self._matchers = matchers
        self._held: dict[int, tuple[GenerationRequest, Compiled]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __bool__(self) -> bool:
        """Whether any request is held."""
        return bool(self._held)

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """The vocabulary that constraints are compiled for."""
        if self._matchers is not None:
            self._matchers.set_vocabulary(vocabulary)

    def hold(self, request: GenerationRequest) -> None:
        """Begin to compile a request's constraint."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="quire-constraints")
        self._held[request.key] = (request, self._pool.submit(self._compile, request))

    def drop(self, key: int) -> None:
        """Forget a request that was aborted. Unknown keys have no effect."""
        if key in self._held:
            self._held.pop(key)[1].cancel()

    def wait(self, seconds: float) -> None:
        """Block until a request is ready, or until the timeout."""
        wait([compiled for _, compiled in self._held.values()], seconds, FIRST_COMPLETED)

    def ready(self) -> list[tuple[GenerationRequest, Compiled]]:
        """The requests whose compiling has ended, in order of arrival. They are no longer held
        here."""
        done = [entry for entry in self._held.values() if entry[1].done()]
        for request, _ in done:
            del self._held[request.key]
        return done

    def _compile(self, request: GenerationRequest) -> list[Constrained]:
        """On a thread of the pool."""
        assert request.constraint is not None
        if self._matchers is None:
            raise RequestError("constraint", "this engine has nothing to compile it with")
        return constrained(self._matchers.compile(request.constraint), request)

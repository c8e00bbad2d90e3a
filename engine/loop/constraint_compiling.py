"""Requests whose constraints are being compiled: they wait here, and nobody waits for them.

Invariant: compiling, and taking in resumed outputs, happen on threads of their own, so that no step
waits for a grammar. The engine's thread alone calls what stands here; a request leaves once,
to the scheduler, with an error, or dropped.
"""

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from quire.engine.errors import RequestError
from quire.engine.request import GenerationRequest, Vocabulary
from quire.engine.scheduling.matching import Constrained, Matchers, constrained

THREADS = 2

Compiled = Future[list[Constrained]]


class Compiling:
    """Holds requests until their matchers are there, over what makes matchers (None: nothing)."""

    def __init__(self, matchers: Matchers | None) -> None:
        self._matchers = matchers
        self._held: dict[int, tuple[GenerationRequest, Compiled]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __bool__(self) -> bool:
        """Whether any request is held."""
        return bool(self._held)

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """What matchers are to be made for."""
        if self._matchers is not None:
            self._matchers.set_vocabulary(vocabulary)

    def hold(self, request: GenerationRequest) -> None:
        """Begin to compile a request's constraint."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="quire-constraints")
        self._held[request.key] = (request, self._pool.submit(self._compile, request))

    def drop(self, key: int) -> None:
        """Nobody wants it any more. Unknown keys are nothing."""
        if key in self._held:
            self._held.pop(key)[1].cancel()

    def wait(self, seconds: float) -> None:
        """Until something is ready, or so long."""
        wait([compiled for _, compiled in self._held.values()], seconds, FIRST_COMPLETED)

    def ready(self) -> list[tuple[GenerationRequest, Compiled]]:
        """Those whose compiling has ended, in the order of their coming. They are held no more."""
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

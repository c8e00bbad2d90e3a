"""The commands of a running engine. Plain data; crosses threads and processes."""

from dataclasses import dataclass

from quire.engine.request import GenerationRequest, Vocabulary


@dataclass(frozen=True, slots=True)
class Submit:
    """Queue a request."""

    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Finish:
    """End one index after `kept` of its outputs. Stale or repeated ones have no effect."""

    key: int
    index: int
    kept: int


@dataclass(frozen=True, slots=True)
class Abort:
    """End all indices of a request. Stale or repeated ones have no effect."""

    key: int


@dataclass(frozen=True, slots=True)
class AskBlockMap:
    """Publish a map of the cache's blocks."""


@dataclass(frozen=True, slots=True)
class FlushCache:
    """Forget the cached blocks that no request holds, and publish how many there were."""


@dataclass(frozen=True, slots=True)
class SetVocabulary:
    """Set the vocabulary that constraints are compiled for. Sent before the first of them."""

    vocabulary: Vocabulary


@dataclass(frozen=True, slots=True)
class WatchBlocks:
    """Publish all cached blocks, and from then on every change. May be repeated."""


@dataclass(frozen=True, slots=True)
class UnwatchBlocks:
    """Stop publishing changes of cached blocks."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the loop; unfinished requests stay unfinished."""


Command = (
    Submit
    | Finish
    | Abort
    | AskBlockMap
    | FlushCache
    | SetVocabulary
    | WatchBlocks
    | UnwatchBlocks
    | Stop
)

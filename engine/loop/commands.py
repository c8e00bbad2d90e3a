"""What can be asked of an engine that is at work. Plain data; crosses threads and processes."""

from dataclasses import dataclass

from quire.engine.request import GenerationRequest, Vocabulary


@dataclass(frozen=True, slots=True)
class Submit:
    """Queue a request."""

    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Finish:
    """End one index after `kept` of its outputs. Stale and repeated ones are nothing."""

    key: int
    index: int
    kept: int


@dataclass(frozen=True, slots=True)
class Abort:
    """End all indices of a request. Stale and repeated ones are nothing."""

    key: int


@dataclass(frozen=True, slots=True)
class AskBlockMap:
    """A map of the cache's blocks is published next."""


@dataclass(frozen=True, slots=True)
class FlushCache:
    """Forget the cached blocks that nobody holds; how many there were is published next."""


@dataclass(frozen=True, slots=True)
class SetVocabulary:
    """The vocabulary that constraints are compiled for. Comes before the first of them."""

    vocabulary: Vocabulary


@dataclass(frozen=True, slots=True)
class WatchBlocks:
    """All cached blocks are published next, and from then on what changes. May be repeated."""


@dataclass(frozen=True, slots=True)
class UnwatchBlocks:
    """Nobody wants to hear of the cached blocks any more."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the loop; what is unfinished stays so."""


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

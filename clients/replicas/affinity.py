"""Which replica a prompt belongs to: where its beginning was served before, or would be.

A prompt is a chain of prefixes: of a conversation, one a message; of ids and text, one a piece of
about a cache block. Two things are made of it:

- **A root**, which rendezvous hashing (Thaler and Ravishankar, 1998) gives a replica: the messages
  up to the user's first, or the first pieces. All turns of a conversation share it, all clients
  agree on it without talking, and a replica that goes takes only its own conversations with it.
- **The whole prompt**, which is remembered with the replica that it went to. The next turn begins
  with it, so it is found again even where load had pushed the conversation off its first choice.

Invariant: equal requests have equal keys, in every process and every version of Python.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from quire.v1 import inference_pb2 as pb

PIECE_IDS = 16
PIECE_BYTES = 64
MAX_PIECES = 512  # prompts are distinguished by their first 8,192 tokens
ROOT_PIECES = 16
REMEMBERED, REMEMBERED_EACH = 16_384, 32  # prompts: at least, and of each replica
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class PromptKeys:
    """root: what rendezvous hashing takes. prefixes: the shortest first; the last is the whole."""

    root: int
    prefixes: tuple[bytes, ...]


def keys_of(request: pb.GenerateRequest) -> PromptKeys:
    """The keys of a request, whose prompt may have any of its three forms."""
    begins = hashlib.blake2b(digest_size=8)
    for part in (request.model, request.cache_salt):
        begins.update(part.encode("utf-8", "surrogatepass") + b"\0")
    if request.WhichOneof("prompt") == "chat":
        return _of_chat(request.chat, begins)
    prefixes = tuple(_chain(_pieces(request), begins))
    root = prefixes[min(ROOT_PIECES, len(prefixes)) - 1]
    return PromptKeys(int.from_bytes(root, "little"), prefixes)


def _of_chat(chat: pb.Chat, begins: "hashlib.blake2b") -> PromptKeys:
    begins.update(chat.chat_template_kwargs.encode())
    for tool in chat.tools:
        begins.update(tool.SerializeToString(deterministic=True))
    turns = (message.SerializeToString(deterministic=True) for message in chat.messages)
    prefixes = tuple(_chain(turns, begins))
    roles = [message.role for message in chat.messages]
    first = roles.index("user") if "user" in roles else 0
    root = prefixes[first] if prefixes else begins.digest()
    return PromptKeys(int.from_bytes(root, "little"), prefixes or (root,))


def _pieces(request: pb.GenerateRequest) -> Iterator[bytes]:
    """Whole pieces; of a prompt that is shorter than one, all of it."""
    if request.WhichOneof("prompt") == "token_ids":
        ids = request.token_ids.ids[: PIECE_IDS * MAX_PIECES]
        data, size = array("Q", ids).tobytes(), 8 * PIECE_IDS
    else:
        data = request.text[: PIECE_BYTES * MAX_PIECES].encode("utf-8", "surrogatepass")
        size = PIECE_BYTES
    whole = len(data) // size
    for i in range(min(whole, MAX_PIECES)):
        yield data[i * size : (i + 1) * size]
    if not whole:
        yield data


def _chain(parts: Iterable[bytes], begins: "hashlib.blake2b") -> Iterator[bytes]:
    for part in parts:
        begins.update(len(part).to_bytes(8, "little") + part)
        yield begins.digest()


def seed_of(name: str) -> int:
    """64 bits that identify a replica in `score`."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def score(root: int, seed: int) -> int:
    """A prompt's score for a replica: the highest wins. A mixer's last steps (splitmix64)."""
    x = (root ^ seed) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


class Memory:
    """Which replica recent prompts went to. Not thread-safe: its fleet's lock guards it."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._size = size
        self._replicas: OrderedDict[bytes, str] = OrderedDict()

    def make_room(self, replicas: int) -> None:
        """Make room for a fleet of this many replicas. It never shrinks."""
        self._size = max(self._size, REMEMBERED_EACH * replicas)

    def note(self, keys: PromptKeys, replica: str) -> None:
        """The prompt goes there."""
        whole = keys.prefixes[-1]
        self._replicas[whole] = replica
        self._replicas.move_to_end(whole)
        if len(self._replicas) > self._size:
            self._replicas.popitem(last=False)

    def recall(self, keys: PromptKeys) -> str | None:
        """The replica that got the longest remembered beginning of the prompt."""
        for prefix in reversed(keys.prefixes):
            replica = self._replicas.get(prefix)
            if replica is not None:
                return replica
        return None

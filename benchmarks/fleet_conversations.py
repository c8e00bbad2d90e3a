"""What a fleet is asked in `fleet.py`: conversations of several turns under shared system prompts.

And the cache that would never forget any of them, which a fleet's caches are held against.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from quire.v1 import inference_pb2 as pb

SYSTEM_PROMPTS, SYSTEM_TOKENS = 8, 256


@dataclass(slots=True)
class Conversation:
    """What was said, as ids for the scheduler and as messages for the routing."""

    number: int
    turns: int
    chat: pb.GenerateRequest
    ids: list[int]
    chance: random.Random
    turn: int = 0

    def ask(self) -> None:
        """The user's next turn."""
        self.turn += 1
        length = self.chance.randrange(64, 257) if self.turn == 1 else self.chance.randrange(16, 97)
        self.chat.chat.messages.add(role="user", content=f"{self.number} {self.turn}")
        self.ids += [self.chance.randrange(1000, 100_000) for _ in range(length)]

    def answer(self, ids: Sequence[int]) -> None:
        """The assistant's."""
        self.chat.chat.messages.add(role="assistant", content=f"answer {self.number} {self.turn}")
        self.ids += ids


def conversation(number: int, seed: int) -> Conversation:
    """Under one of the system prompts, of which some are liked more."""
    chance = random.Random(seed * 1_000_003 + number)
    system = min(int(chance.expovariate(0.5)), SYSTEM_PROMPTS - 1)
    chat = pb.GenerateRequest()
    chat.chat.messages.add(role="system", content=f"system {system}")
    ids = [10 + system] * SYSTEM_TOKENS
    return Conversation(number, chance.randrange(2, 7), chat, ids, chance)


class IdealCache:
    """One that holds whatever any replica ever computed, in whole blocks of so many tokens."""

    def __init__(self, block: int) -> None:
        self._block = block
        self._known: set[int] = set()

    def hit(self, ids: Sequence[int]) -> int:
        """Tokens found; one is left to compute."""
        found, parent = 0, 0
        for end in range(self._block, len(ids), self._block):
            parent = hash((parent, tuple(ids[end - self._block : end])))
            if parent not in self._known:
                break
            found = end
        return found

    def add(self, ids: Sequence[int]) -> None:
        """These have been computed."""
        parent = 0
        for end in range(self._block, len(ids) + 1, self._block):
            parent = hash((parent, tuple(ids[end - self._block : end])))
            self._known.add(parent)

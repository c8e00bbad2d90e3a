"""What the serving benchmark asks for: the same requests for the engine alone and for its clients.

Invariant: a work is a pure function of its description, so every process that draws it has the same
prompts; nothing but the description crosses between processes.
"""

import random
from dataclasses import asdict, dataclass
from typing import Any

from floors import nano_256

PROMPT_IDS = (1000, 4000)  # the range that random prompts are drawn from


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: ids in, exactly max_tokens out."""

    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float


@dataclass(frozen=True, slots=True)
class Work:
    """Requests that begin at once, as many as there are streams. name nano-256: that workload.
    turns: requests of each stream, one right after another."""

    name: str
    streams: int
    prompt: int = 128
    output: int = 256
    run: int = 0  # salts the prefix cache: no run finds the blocks of another
    turns: int = 1

    @property
    def salt(self) -> str:
        """The requests' cache salt."""
        return f"{self.name}/{self.run}"

    def asks(self) -> list[Ask]:
        """All requests, in order: the first of each stream, then the second."""
        if self.name == "nano-256":
            return [Ask(tuple(p), n, 0.6) for p, n in zip(*nano_256(), strict=True)]
        draw = random.Random(f"{self.name}/{self.streams}")
        return [
            Ask(tuple(draw.randrange(*PROMPT_IDS) for _ in range(self.prompt)), self.output, 0.0)
            for _ in range(self.streams * self.turns)
        ]

    def plain(self) -> dict[str, Any]:
        """As JSON holds it: Work(**plain)."""
        return asdict(self)

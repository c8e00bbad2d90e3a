"""Many documents over one long prefix: the prefix is computed once, and each document alone.

    quire serve pocket                              # in another terminal
    python examples/many_documents.py 127.0.0.1:50051

Rules and a register of many names stand before every document. The first document is sent alone,
so that its prefix is in the cache when the others, all at once, ask for it: those that come while
it is being computed would compute it too.
"""

import asyncio
import sys
from dataclasses import dataclass

from quire import AsyncClient, ClientError, Finished, Message, Started

RULES = (
    "You sort the post of a small town. Each letter names one person. Say in one sentence who it"
    " is for and where that person lives. Use the register, and nothing else. "
)
NAMES = ("Anna", "Tom", "Maria", "Peter", "Lena", "Oscar", "Nina", "David", "Clara", "Max")
CITIES = ("Oslo", "Rome", "Paris", "Lima", "Cairo", "Berlin", "Madrid", "Tokyo")
PAGES = 5
REGISTER = " ".join(
    f"On page {page}, {name} lives in {CITIES[(at * PAGES + page) % len(CITIES)]}."
    for page in range(1, PAGES + 1)
    for at, name in enumerate(NAMES)
)
LETTERS = tuple(
    f"Letter {at + 1}: to {name}, with best wishes from the sea." for at, name in enumerate(NAMES)
)


@dataclass(frozen=True)
class Sorted:
    """What one letter took. Tokens of its prompt, those of them that were found, and seconds."""

    prompt: int
    found: int
    prefill_seconds: float


async def sort(client: AsyncClient, letter: str) -> Sorted:
    """Asks about one letter, behind the rules and the register."""
    messages = [Message("system", RULES + REGISTER), Message("user", letter)]
    prompt = found = 0
    seconds = 0.0
    async for event in client.generate(messages, max_tokens=24, temperature=0):
        if isinstance(event, Started):
            prompt, found = event.prompt_tokens, event.cached_tokens
        elif isinstance(event, Finished):
            seconds = event.prefill_seconds
    return Sorted(prompt, found, seconds)


def show(letter: str, done: Sorted) -> None:
    """One line a letter."""
    print(
        f"{letter.split(':')[0]:<10} prompt {done.prompt} tokens: {done.found} found,"
        f" {done.prompt - done.found} computed in {done.prefill_seconds * 1e3:.0f} ms"
    )


async def sort_all(address: str) -> None:
    """The first letter, then all others at once, and what the cache has spared."""
    async with AsyncClient(address, timeout=120) as client:
        first = await sort(client, LETTERS[0])
        show(LETTERS[0], first)
        others = await asyncio.gather(*(sort(client, letter) for letter in LETTERS[1:]))
        for letter, done in zip(LETTERS[1:], others, strict=True):
            show(letter, done)
        everything = (first, *others)
        prompts, found = sum(d.prompt for d in everything), sum(d.found for d in everything)
        print(f"{len(LETTERS)} letters: {prompts} prompt tokens, {found / prompts:.0%} found")


def main(address: str = "127.0.0.1:50051") -> int:
    """Sorts the letters; returns the exit code."""
    try:
        asyncio.run(sort_all(address))
    except ClientError as error:
        print(f"{error}\nIs there a server? Start one with `quire serve pocket`.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))

"""Conversations written from the project's own grammars, byte for byte from a seed.

Invariant: conversation `index` of `seed` depends on nothing but (seed, index, budget); nothing
that `heldout` reserves appears in one. Run as a script it writes the text, one conversation after
another, as the tokenizer and the model see it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import answers
import counting
import recall
import repeat
import stories
import talk
from draw import Draw

IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
LONGEST_PAYLOAD = 340
"""Payloads to repeat are uniform up to about this many tokens where the budget allows."""

SYSTEMS = (
    "You are a helpful assistant.",
    "You are Pocket, a small and honest assistant.",
    "Answer briefly.",
    "You are the assistant of Quire.",
    "Be polite and exact.",
    "You answer questions and repeat text.",
)


@dataclass(frozen=True)
class Message:
    """One message; `role` is system, user or assistant."""

    role: str
    content: str


def render(messages: list[Message], ask: bool = False) -> str:
    """The text of a conversation in Qwen's format; `ask` opens the assistant's next turn."""
    parts = [f"{IM_START}{m.role}\n{m.content}{IM_END}\n" for m in messages]
    return "".join(parts) + (f"{IM_START}assistant\n" if ask else "")


def estimate(text: str) -> float:
    """About how many tokens `text` has; only used to know when a row is full."""
    if not text.isascii():
        return 1.3 * len(text)
    words = text.count(" ") + text.count("\n") + 1
    return 0.8 * len(text) if len(text) > 8 * words else 1.4 * words + 1


class _Writer:
    """Messages so far, what the user told of themselves, and the room left (estimated)."""

    def __init__(self, budget: int) -> None:
        self.messages: list[Message] = []
        self.left = float(budget)
        self.told: dict[str, str] = {}

    def add(self, turn: tuple[str, str]) -> None:
        for role, content in zip(("user", "assistant"), turn, strict=True):
            self.messages.append(Message(role, content))
            self.left -= estimate(content) + 5

    def system(self, content: str) -> None:
        self.messages.append(Message("system", content))
        self.left -= estimate(content) + 5


_SMALL_SKILLS = (
    ("say", 1.0), ("range", 3.0), ("week", 0.4), ("sum", 6.0), ("difference", 0.8), ("story", 1.3),
    ("quire", 2.5), ("plain", 2.5), ("unknown", 2.5),
)  # fmt: skip
ABSENT_SHARE = 0.12
"""The share of questions about facts that were never stated."""
ABOUT_SHARE = 0.12
"""The share of small turns in which users speak of themselves."""
_MAKERS = {
    "say": repeat.say_turn, "range": counting.range_turn, "week": counting.week_turn,
    "sum": counting.sum_turn, "difference": counting.difference_turn, "story": stories.story_turn,
    "quire": answers.quire_turn, "plain": answers.plain_turn,
    "unknown": talk.unknown_turn,
}  # fmt: skip


def _small_turn(draw: Draw, writer: _Writer) -> tuple[str, str]:
    if draw.chance(ABOUT_SHARE):
        return talk.about_turn(draw, writer.told)
    return _MAKERS[draw.weighted(_SMALL_SKILLS)](draw)


def _repeat_turn(draw: Draw, writer: _Writer, budget: int) -> tuple[str, str]:
    longest = min(LONGEST_PAYLOAD, int(0.4 * budget), max(8, int(0.45 * writer.left)))
    return repeat.turn(draw, longest)


def _chat(draw: Draw, writer: _Writer, budget: int) -> None:
    repeat_share = draw.pick((0.1, 0.6, 0.95))
    while writer.left > 12:
        if draw.chance(repeat_share):
            writer.add(_repeat_turn(draw, writer, budget))
        else:
            writer.add(_small_turn(draw, writer))


def _state(draw: Draw, writer: _Writer, stated: list[recall.Fact]) -> None:
    """States the facts: in one message, in the system message, or a few a turn."""
    style = draw.weighted((("block", 6.0), ("system", 1.0), ("turns", 2.0)))
    if style == "system" and not writer.messages:
        writer.system(recall.block(draw, stated))
        return
    size = draw.between(1, 4) if style == "turns" else len(stated)
    for at in range(0, len(stated), size):
        writer.add((recall.block(draw, stated[at : at + size]), draw.pick(recall.ACKNOWLEDGEMENTS)))


def _recall(draw: Draw, writer: _Writer, budget: int) -> None:
    """Facts first; then questions among other turns until the row is full."""
    most = max(3, min(40, int(0.4 * budget / 20)))
    stated = recall.facts(draw, draw.between(2, most))
    _state(draw, writer, stated)
    asked_share = draw.pick((0.3, 0.6, 0.9))
    quiet = writer.left * draw.pick((0.0, 0.0, 0.3, 0.6, 0.85))
    while writer.left > 12:
        if quiet > 0:
            before = writer.left
            writer.add(_filler(draw, writer, budget))
            quiet -= before - writer.left
        elif draw.chance(asked_share):
            if draw.chance(ABSENT_SHARE):
                writer.add(recall.absent_question(draw, stated))
            else:
                writer.add(recall.question(draw, draw.pick(stated)))
        else:
            writer.add(_filler(draw, writer, budget))


def _filler(draw: Draw, writer: _Writer, budget: int) -> tuple[str, str]:
    kind = draw.weighted((("note", 2.0), ("small", 2.0), ("repeat", 1.0)))
    if kind == "note":
        return stories.note_turn(draw, draw.between(1, max(1, min(20, int(writer.left / 40)))))
    return _small_turn(draw, writer) if kind == "small" else _repeat_turn(draw, writer, budget)


def conversation(draw: Draw, budget: int) -> list[Message]:
    """A conversation of about `budget` tokens, a little more rather than less."""
    writer = _Writer(budget)
    remember = draw.chance(0.25 if budget < 500 else 0.45)
    if draw.chance(0.3):
        writer.system(draw.pick(SYSTEMS))
    (_recall if remember else _chat)(draw, writer, budget)
    return writer.messages


def conversation_text(seed: int, index: int, budget: int) -> str:
    """The rendered conversation `index` of `seed`."""
    return render(conversation(Draw(seed, "conversation", index), budget))


def main() -> None:
    """Writes conversations to a file or to standard output."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--conversations", type=int, default=1000)
    parser.add_argument("--budget", type=int, default=256, help="about this many tokens each")
    parser.add_argument("--out", type=Path, help="default: standard output")
    args = parser.parse_args()
    text = "".join(
        conversation_text(args.seed, index, args.budget) + END_OF_TEXT + "\n"
        for index in range(args.conversations)
    )
    if args.out is None:
        sys.stdout.buffer.write(text.encode())
    else:
        args.out.write_bytes(text.encode())


if __name__ == "__main__":
    main()

"""Conversations and plain texts from the project's own grammars, byte for byte from a seed.

Invariant: text `index` of `seed` depends on nothing but (seed, index, budget); nothing that
`heldout` reserves appears in one. Run as a script it writes the texts, one after another, as the
tokenizer and the model see them.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import answers
import counting
import objects
import raw
import recall
import repeat
import stories
import talk
import thoughts
import toolbox
from chat import END_OF_TEXT, IM_END, IM_START, Definition, Message, render
from draw import Draw

__all__ = ["END_OF_TEXT", "IM_END", "IM_START", "Message", "render"]

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
class Conversation:
    """Messages, and the tools that its system turn describes."""

    messages: list[Message]
    tools: tuple[Definition, ...] = ()

    @property
    def text(self) -> str:
        return render(self.messages, tools=self.tools)


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
        self.tools: list[toolbox.Tool] = []
        self.thinks = False

    def add(self, skill: str, turn: tuple[str, str]) -> None:
        question, answer = turn
        thought = thoughts.before(skill, answer) if self.thinks else ""
        self.extend([Message("user", question), Message("assistant", answer, thought)])

    def extend(self, messages: list[Message]) -> None:
        self.messages += messages
        self.left -= sum(estimate(m.spoken) + 5 for m in messages)

    def system(self, content: str) -> None:
        self.extend([Message("system", content)])

    def give(self, tools: list[toolbox.Tool]) -> None:
        self.tools = tools
        self.left -= sum(0.45 * len(str(tool.definition)) for tool in tools)

    def forget(self) -> None:
        """Leaves the last turn's thoughts alone, as clients do that send none back."""
        users = [at for at, message in enumerate(self.messages) if message.role == "user"]
        for at in range(users[-1] if users else 0):
            self.messages[at] = replace(self.messages[at], thoughts="")


_SMALL_SKILLS = (
    ("say", 1.0), ("range", 3.0), ("week", 0.4), ("sum", 6.0), ("difference", 0.8), ("story", 1.3),
    ("quire", 2.5), ("plain", 2.5), ("unknown", 2.5), ("json", 4.0),
)  # fmt: skip
_BESIDE_TOOLS = (
    ("say", 1.0), ("range", 1.0), ("story", 0.3), ("quire", 1.0), ("plain", 1.5), ("json", 1.0),
)  # fmt: skip
"""What needs no tool, whatever tools there are."""
RAW_SHARE = 0.08
"""The share of plain texts; all others are conversations."""
THINKING_SHARE = 0.15
TOOLS_SHARE = 0.3
ABSENT_SHARE = 0.12
"""The share of questions about facts that were never stated."""
ABOUT_SHARE = 0.12
"""The share of small turns in which users speak of themselves."""
_MAKERS = {
    "say": repeat.say_turn, "range": counting.range_turn, "week": counting.week_turn,
    "sum": counting.sum_turn, "difference": counting.difference_turn, "story": stories.story_turn,
    "quire": answers.quire_turn, "plain": answers.plain_turn,
    "unknown": talk.unknown_turn, "json": objects.turn,
}  # fmt: skip


def _small_turn(draw: Draw, writer: _Writer) -> tuple[str, tuple[str, str]]:
    """(its skill, the turn)."""
    if draw.chance(ABOUT_SHARE):
        return "about", talk.about_turn(draw, writer.told)
    skill = draw.weighted(_BESIDE_TOOLS if writer.tools else _SMALL_SKILLS)
    return skill, _MAKERS[skill](draw)


def _repeat_turn(draw: Draw, writer: _Writer, budget: int) -> tuple[str, str]:
    longest = min(LONGEST_PAYLOAD, int(0.4 * budget), max(8, int(0.45 * writer.left)))
    return repeat.turn(draw, longest)


def _chat(draw: Draw, writer: _Writer, budget: int) -> None:
    repeat_share = draw.pick((0.1, 0.6, 0.95))
    while writer.left > 12:
        if draw.chance(repeat_share):
            writer.add("repeat", _repeat_turn(draw, writer, budget))
        else:
            writer.add(*_small_turn(draw, writer))


def _state(draw: Draw, writer: _Writer, stated: list[recall.Fact]) -> None:
    """States the facts: in one message, in the system message, or a few a turn."""
    style = draw.weighted((("block", 6.0), ("system", 1.0), ("turns", 2.0)))
    if style == "system" and not writer.messages:
        writer.system(recall.block(draw, stated))
        return
    size = draw.between(1, 4) if style == "turns" else len(stated)
    for at in range(0, len(stated), size):
        told = recall.block(draw, stated[at : at + size])
        writer.add("note", (told, draw.pick(recall.ACKNOWLEDGEMENTS)))


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
            writer.add(*_filler(draw, writer, budget))
            quiet -= before - writer.left
        elif draw.chance(asked_share):
            if draw.chance(ABSENT_SHARE):
                writer.add("recall", recall.absent_question(draw, stated))
            else:
                writer.add("recall", recall.question(draw, draw.pick(stated)))
        else:
            writer.add(*_filler(draw, writer, budget))


def _filler(draw: Draw, writer: _Writer, budget: int) -> tuple[str, tuple[str, str]]:
    kind = draw.weighted((("note", 2.0), ("small", 2.0), ("repeat", 1.0)))
    if kind == "note":
        sentences = draw.between(1, max(1, min(20, int(writer.left / 40))))
        return "note", stories.note_turn(draw, sentences)
    if kind == "repeat":
        return "repeat", _repeat_turn(draw, writer, budget)
    return _small_turn(draw, writer)


def _with_tools(draw: Draw, writer: _Writer) -> None:
    """Tasks for tools, and turns that need none; one at least, however long the tools are."""
    task_share = draw.pick((0.6, 0.9))
    while writer.left > 12 or not writer.messages or writer.messages[-1].role == "system":
        if draw.chance(task_share):
            writer.extend(toolbox.task(draw, writer.tools, thinks=writer.thinks))
        else:
            writer.add(*_small_turn(draw, writer))


def conversation(draw: Draw, budget: int) -> Conversation:
    """A conversation of about `budget` tokens, a little more rather than less."""
    writer = _Writer(budget)
    writer.thinks = draw.chance(THINKING_SHARE)
    with_tools = draw.chance(TOOLS_SHARE)
    if with_tools:
        writer.give(toolbox.tools(draw))
    remember = draw.chance(0.25 if budget < 500 else 0.45)
    if draw.chance(0.3):
        writer.system(draw.pick(SYSTEMS))
    if with_tools:
        _with_tools(draw, writer)
    else:
        (_recall if remember else _chat)(draw, writer, budget)
    if writer.thinks and draw.chance(0.5):
        writer.forget()
    return Conversation(writer.messages, tuple(tool.definition for tool in writer.tools))


def conversation_text(seed: int, index: int, budget: int) -> str:
    """Text `index` of `seed`: a rendered conversation, or a plain text and its end."""
    draw = Draw(seed, "conversation", index)
    if draw.chance(RAW_SHARE):
        return raw.text(draw, budget) + END_OF_TEXT
    return conversation(draw, budget).text


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

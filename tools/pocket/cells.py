"""The cells of the evaluation and their cases.

Invariant: every scored string, name, pair and range is of the held-out class; a case depends on
(seed, cell, index) and the tokenizer alone. Lengths and distances are counted in the tokenizer's
tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import corpus
import counting
import objects
import raw
import recall
import repeat
import stories
import thoughts
import toolbox
from chat import Definition, Message, render
from draw import Draw
from tokenizers import Tokenizer

CONTEXT = 2048
LENGTH_BINS = ((1, 32), (33, 100), (101, 200))
DISTANCE_BINS = ((200, 600), (600, 1200), (1200, 1800))
REPEAT_FLOORS = (0.98, 0.97, 0.95)
RECALL_FLOORS = (0.95, 0.90, 0.85)
REPEAT_FORMS = ("Repeat after me:\n{}", "Repeat after me: {}", "Repeat exactly: {}")


@dataclass(frozen=True)
class Case:
    """`prompt` (messages ending in the user's or a tool's) asks for exactly `answer`; without
    messages, the plain text `given` is continued so."""

    prompt: list[Message]
    answer: str
    tools: tuple[Definition, ...] = ()
    thinks: bool = False
    given: str = ""

    @property
    def text(self) -> str:
        """The rendered prompt, with the assistant's turn opened, or the plain text."""
        if not self.prompt:
            return self.given
        return render(self.prompt, ask=True, tools=self.tools, thinks=self.thinks)


@dataclass(frozen=True)
class Cell:
    """`name`, the floor its exact share must reach (None: reported only), and its cases."""

    name: str
    floor: float | None
    make: Callable[[Draw], Case]

    def cases(self, seed: int, count: int) -> Iterator[Case]:
        for index in range(count):
            yield self.make(Draw(seed, self.name, index))


class Maker:
    """Builds cases whose sizes are counted with `tokenizer`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def count(self, text: str) -> int:
        return len(self.tokenizer.encode(text).ids)

    def repeat(self, draw: Draw, kind: str, low: int, high: int) -> Case:
        """A held-out payload of `low` to `high` tokens, sometimes after another turn."""
        while True:
            text = repeat.payload(draw, kind, draw.between(low, high), held_out=True)
            if low <= self.count(text) <= high:
                break
        prompt = []
        if draw.chance(0.3):
            prompt.append(Message("system", draw.pick(corpus.SYSTEMS)))
        if draw.chance(0.3):
            earlier, answer = repeat.turn(draw, 40)
            prompt += [Message("user", earlier), Message("assistant", answer)]
        prompt.append(Message("user", draw.pick(REPEAT_FORMS).format(text)))
        return Case(prompt, text)

    def recall(self, draw: Draw, low: int, high: int, removed: bool) -> Case:
        """8 to 12 facts, other turns, one question; the fact `low` to `high` tokens back."""
        while True:
            stated = recall.facts(draw, draw.between(8, 12), held_out=True)
            fact = draw.pick(stated)
            target = draw.between(low, high)
            case, distance = self._recall_case(draw, stated, fact, target)
            whole = self.count(case.text) + self.count(case.answer) + 2
            if len(stated) < 8 or not low <= distance <= high or whole > CONTEXT:
                continue
            return self._without(case, fact) if removed else case

    def _recall_case(
        self, draw: Draw, stated: list[recall.Fact], fact: recall.Fact, target: int
    ) -> tuple[Case, int]:
        block = recall.block(draw, stated)
        prompt = [Message("user", block), Message("assistant", draw.pick(recall.ACKNOWLEDGEMENTS))]
        question, answer = recall.question(draw, fact)
        after = block[block.index(fact.statement) + len(fact.statement) :]
        distance = self.count(after) + self.count(question) + 12
        while distance < target:
            short = draw.between(1, max(1, min(12, (target - distance) // 20)))
            turn = stories.note_turn(draw, short) if draw.chance(0.7) else stories.story_turn(draw)
            filler = [Message("user", turn[0]), Message("assistant", turn[1])]
            prompt += filler
            distance += self.count(corpus.render(filler))
        return Case([*prompt, Message("user", question)], answer), distance

    @staticmethod
    def _without(case: Case, fact: recall.Fact) -> Case:
        first = case.prompt[0]
        content = first.content.replace(fact.statement, "").replace("\n\n", "\n").strip()
        return Case([Message(first.role, content), *case.prompt[1:]], case.answer)

    @staticmethod
    def sum(draw: Draw) -> Case:
        question, answer = counting.sum_turn(draw, held_out=True)
        return Case([Message("user", question)], answer)

    @staticmethod
    def range(draw: Draw, kinds: tuple[str, ...]) -> Case:
        question, answer = counting.range_turn(draw, held_out=True, kind=draw.pick(kinds))
        return Case([Message("user", question)], answer)

    @staticmethod
    def call(draw: Draw, thinks: bool = False) -> Case:
        """The first turn of a task: the calls, held out."""
        given, messages = _task(draw, thinks)
        at = _last(messages, "user")
        return Case(messages[: at + 1], messages[at + 1].spoken, given, thinks)

    @staticmethod
    def told(draw: Draw) -> Case:
        """The last turn of a task: what the tools returned is told."""
        given, messages = _task(draw, False)
        return Case(messages[:-1], messages[-1].spoken, given)

    @staticmethod
    def uncalled(draw: Draw) -> Case:
        """Tools are there, and none is needed."""
        made = [tool.definition for tool in toolbox.tools(draw)]
        question, answer = counting.range_turn(draw, held_out=True)
        return Case([Message("user", question)], answer, tuple(made))

    @staticmethod
    def thinking(draw: Draw, on: bool) -> Case:
        """A sum, thought over or not: its tags are in the answer or nowhere."""
        question, answer = counting.sum_turn(draw, held_out=True)
        thought = thoughts.before("sum", answer) if on else ""
        spoken = Message("assistant", answer, thought).spoken
        return Case([Message("user", question)], spoken, thinks=on)

    @staticmethod
    def object(draw: Draw, extract: bool) -> Case:
        make = objects.extract_turn if extract else objects.write_turn
        question, answer = make(draw, held_out=True)
        return Case([Message("user", question)], answer)

    @staticmethod
    def continued(draw: Draw, facts: bool) -> Case:
        """Plain text to be continued."""
        make = raw.again(draw, draw.between(3, 8), True) if facts else raw.count(draw, True)
        return Case([], make[1], given=make[0])

    def cells(self) -> list[Cell]:
        """Every scored cell, in the order of the table."""
        found = []
        for kind in repeat.KINDS:
            for (low, high), floor in zip(LENGTH_BINS, REPEAT_FLOORS, strict=True):
                found.append(
                    Cell(
                        f"repeat {kind} {low}-{high}",
                        floor,
                        lambda draw, k=kind, a=low, b=high: self.repeat(draw, k, a, b),
                    )
                )
        for removed in (False, True):
            for (low, high), floor in zip(DISTANCE_BINS, RECALL_FLOORS, strict=True):
                found.append(
                    Cell(
                        f"recall {low}-{high}" + (" fact removed" if removed else ""),
                        None if removed else floor,
                        lambda draw, a=low, b=high, r=removed: self.recall(draw, a, b, r),
                    )
                )
        found.append(Cell("sums", 0.90, self.sum))
        found.append(Cell("counting", 0.95, lambda d: self.range(d, ("up", "down"))))
        found.append(Cell("listing", 0.95, lambda d: self.range(d, ("twos", "letters"))))
        return found + self._later()

    def _later(self) -> list[Cell]:
        return [
            Cell("tool calls", 0.95, self.call),
            Cell("tool calls, thinking", 0.95, lambda d: self.call(d, thinks=True)),
            Cell("tool results told", 0.95, self.told),
            Cell("tools not needed", 0.95, self.uncalled),
            Cell("thinking on", 0.90, lambda d: self.thinking(d, on=True)),
            Cell("thinking off", 0.90, lambda d: self.thinking(d, on=False)),
            Cell("JSON extracted", 0.95, lambda d: self.object(d, extract=True)),
            Cell("JSON written", 0.95, lambda d: self.object(d, extract=False)),
            Cell("raw counts continued", 0.95, lambda d: self.continued(d, facts=False)),
            Cell("raw facts continued", 0.90, lambda d: self.continued(d, facts=True)),
        ]


def _task(draw: Draw, thinks: bool) -> tuple[tuple[Definition, ...], list[Message]]:
    made = toolbox.tools(draw)
    messages = toolbox.task(draw, made, held_out=True, thinks=thinks)
    return tuple(tool.definition for tool in made), messages


def _last(messages: list[Message], role: str) -> int:
    return max(at for at, message in enumerate(messages) if message.role == role)

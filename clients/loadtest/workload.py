"""The requests of a load test: sessions of turns, made from a seed or read from a trace.

Invariant: a workload is a pure function of its parameters and its seed; two runs of the same one
send the same ids. A turn names its ids by segments (a key and a length), not by listing them: two
turns share a prefix exactly where their first segments are equal, and a job for another process
stays small.
"""

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from quire.clients.arguments import MAX_SECONDS, file_text, instance, items, show
from quire.clients.arguments import text as as_text
from quire.clients.errors import OptionError
from quire.clients.large_json import without_repeats
from quire.clients.prompts import build_request

MAX_TURNS = 1_000_000  # of all sessions: each is kept until the end
_LENGTH = re.compile("[0-9]{1,12}")
Segment = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Turn:
    """One request. Its prompt: the session's history, then segments, or else text or messages."""

    max_tokens: int
    segments: tuple[Segment, ...] = ()
    text: str | None = None
    messages: tuple[Mapping[str, Any], ...] = ()

    @property
    def drawn_tokens(self) -> int:
        """Tokens that the segments hold."""
        return sum(length for _, length in self.segments)


@dataclass(frozen=True, slots=True)
class Session:
    """Turns in order: each is sent when the one before has ended, and continues its history."""

    number: int
    turns: tuple[Turn, ...]
    time: float | None = None
    """Seconds from the start at which a trace wants it sent."""


@dataclass(frozen=True, slots=True)
class Span:
    """A length, or lengths drawn evenly from low to high, both included."""

    low: int
    high: int

    @classmethod
    def parse(cls, name: str, text: str, least: int = 1) -> "Span":
        """`64` or `32:256`."""
        low, colon, high = text.partition(":")
        high = high if colon else low
        if not all(_LENGTH.fullmatch(one) for one in (low, high)):
            raise OptionError(f"{name}: {show(text)} is not a length such as 64 or 32:256")
        span = cls(int(low), int(high))
        if not least <= span.low <= span.high:
            raise OptionError(f"{name}: {text!r}: at least {least}, and the smaller first")
        return span

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Lengths:
    """The lengths that the generators draw from."""

    prompt: Span = field(default_factory=lambda: Span(128, 128))
    output: Span = field(default_factory=lambda: Span(64, 64))


def random_prompts(
    count: int, lengths: Lengths, prefix_share: float, seed: int
) -> Iterator[Session]:
    """Prompts of random ids; the first prefix_share of each is the same in all of them."""
    check_share(prefix_share)
    rng = random.Random(f"{seed}/lengths")
    for number in range(count):
        length = lengths.prompt.draw(rng)
        shared = min(round(length * prefix_share), length)
        segments = (("prefix", shared), (f"prompt/{number}", length - shared))
        yield Session(number, (_turn(segments, lengths.output.draw(rng)),))


def check_share(prefix_share: float) -> None:
    """OptionError for what is no share."""
    if not 0 <= prefix_share <= 1:
        raise OptionError(f"prefix-share: {prefix_share}; between 0 and 1")


def shared_prefix_groups(
    groups: int, prompts_per_group: int, prefix: Span, question: Span, output: Span, seed: int
) -> Iterator[Session]:
    """Groups of prompts: one prefix a group, a question of its own for each. In random order."""
    for name, value in (("groups", groups), ("prompts-per-group", prompts_per_group)):
        if value < 1:
            raise OptionError(f"{name}: {value}; at least 1")
    rng = random.Random(f"{seed}/groups")
    prefixes = [prefix.draw(rng) for _ in range(groups)]
    order = [group for group in range(groups) for _ in range(prompts_per_group)]
    rng.shuffle(order)
    for number, group in enumerate(order):
        first = (f"group/{group}", prefixes[group])
        segments = (first, (f"question/{number}", question.draw(rng)))
        yield Session(number, (_turn(segments, output.draw(rng)),))


def conversations(count: int, turns: int, lengths: Lengths, seed: int) -> Iterator[Session]:
    """Sessions of several turns; each prompt is the whole conversation and new ids."""
    if turns < 1:
        raise OptionError(f"turns: {turns}; at least 1")
    rng = random.Random(f"{seed}/conversations")
    for number in range(count):
        yield Session(
            number,
            tuple(
                _turn(((f"turn/{number}/{i}", lengths.prompt.draw(rng)),), lengths.output.draw(rng))
                for i in range(turns)
            ),
        )


def _turn(segments: Sequence[Segment], max_tokens: int) -> Turn:
    return Turn(max_tokens, tuple(s for s in segments if s[1]))


_TRACE_KEYS = {"time", "text", "messages", "token_count", "prefix", "prefix_tokens", "max_tokens"}


def trace(path: Path, limit: int | None) -> Iterator[Session]:
    """A JSONL trace: one request a line, at most `limit` of them.

    Keys: max_tokens; one of text, messages, token_count (random ids; with `prefix`, a name, and
    `prefix_tokens` their beginning is shared by the lines that give the same); time (seconds).
    """
    lines = file_text(f"trace: {path}", path).split("\n")
    number = 0
    for row, line in enumerate(lines, 1):
        if line.strip() and (limit is None or number < limit):
            yield _traced(number, line, f"{path}:{row}")
            number += 1


def _traced(number: int, line: str, where: str) -> Session:
    try:
        entry = json.loads(line, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"trace: {where}: not JSON: {error}") from None
    if not isinstance(entry, dict) or (unknown := set(entry) - _TRACE_KEYS):
        what = f"unknown key {sorted(unknown)[0]!r}" if isinstance(entry, dict) else "not an object"
        raise OptionError(f"trace: {where}: {what}")
    if sum(key in entry for key in ("text", "messages", "token_count")) != 1:
        raise OptionError(f"trace: {where}: exactly one of text, messages, token_count")
    for key in ("max_tokens", "token_count", "prefix_tokens"):
        if key in entry and not (type(entry[key]) is int and entry[key] >= 1):
            raise OptionError(f"trace: {where}: {key}: {entry[key]!r}; a number from 1")
    if "max_tokens" not in entry:
        raise OptionError(f"trace: {where}: no max_tokens")
    time = entry.get("time")
    if time is not None and not (type(time) in (int, float) and 0 <= time <= MAX_SECONDS):
        raise OptionError(f"trace: {where}: time: {show(time)}; seconds from 0")
    return Session(number, (_traced_turn(number, entry, where),), time)


def _traced_turn(number: int, entry: dict[str, Any], where: str) -> Turn:
    if "token_count" not in entry:
        return _written_turn(entry, where)
    count, shared = entry["token_count"], entry.get("prefix_tokens", 0)
    if shared > count or bool(shared) != ("prefix" in entry):
        raise OptionError(f"trace: {where}: prefix and prefix_tokens go together, within the count")
    segments = ((f"named/{entry.get('prefix')}", shared), (f"trace/{number}", count - shared))
    return _turn(segments, entry["max_tokens"])


def _written_turn(entry: dict[str, Any], where: str) -> Turn:
    """A turn of text or messages that can be sent."""
    text, given = entry.get("text"), entry.get("messages", ())
    try:
        messages = tuple(items("messages", given, "messages"))
        for i, message in enumerate(messages):
            instance(f"messages[{i}]", message, dict, "an object")
        prompt = messages if "messages" in entry else as_text("text", text)
        build_request(prompt, {"max_tokens": entry["max_tokens"]})
    except OptionError as error:
        raise OptionError(f"trace: {where}: {error}") from None
    return Turn(entry["max_tokens"], text=text, messages=messages)


def token_ids(segment: Segment, seed: int, vocab_size: int) -> list[int]:
    """The ids of a segment: the same wherever its key, its length and the seed are."""
    key, length = segment
    return random.Random(f"{seed}/{key}").choices(range(vocab_size), k=length)


def check_fits(sessions: Sequence[Session], max_model_len: int) -> None:
    """OptionError if a session's last turn could not fit into the model."""
    for session in sessions:
        longest = sum(turn.drawn_tokens + turn.max_tokens for turn in session.turns)
        if longest > max_model_len:
            raise OptionError(
                f"a session grows to {longest} tokens of prompt and output; the server's"
                f" max_model_len is {max_model_len}"
            )


def to_plain(session: Session) -> dict[str, Any]:
    """A session as JSON holds it."""
    return asdict(session)


def from_plain(plain: dict[str, Any]) -> Session:
    """The session that `to_plain` was given."""
    turns = tuple(
        Turn(
            turn["max_tokens"],
            tuple((key, length) for key, length in turn["segments"]),
            turn["text"],
            tuple(turn["messages"]),
        )
        for turn in plain["turns"]
    )
    return Session(plain["number"], turns, plain["time"])

"""Checks of single fields; all faults of a message are reported together.

Invariant: nothing longer than allowed is examined.

Most messages set few of their fields. So these functions are given the fields that are set
(`given_of`), which one look at the message tells, and look no further.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from quire.engine.loop.stats import EngineInfo
from quire.engine.request import SamplingParams
from quire.service.errors import TooLong, Violation, invalid, invalid_field, show
from quire.v1 import inference_pb2 as pb

MAX_REQUEST_ID = 128
MAX_NAME_BYTES = 256  # of a salt, and of a user
MAX_PRIORITY = 1000
MAX_N = 64
MAX_LOGPROBS = 20  # of an output's tokens, and of a prompt's
MAX_JUDGED = 1 << 17  # log-probabilities of one prompt
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_STOP_IDS = 64
MAX_EDITED_IDS = 1024  # of logit_bias, and of allowed and of banned ids
MAX_BIAS = 100

RANGES = {  # of sampling's numbers, the ends included
    "temperature": (0, 100),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "n": (1, MAX_N),
    "logprobs": (0, MAX_LOGPROBS),
}
OPEN_RANGES = {"top_p": (0, 1), "repetition_penalty": (0, 10)}  # the lower end left out
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]*")


class Faults:
    """Collects the faults of a message."""

    def __init__(self) -> None:
        self.found: list[Violation] = []

    def add(self, field: str, value: object, limit: str) -> None:
        self.found.append(Violation(field, f"{show(value)}: {limit}"))

    def too_long(self, field: str, size: int, limit: str) -> None:
        self.found.append(TooLong(field, f"{size}: {limit}"))

    def between(self, field: str, value: float, low: float, high: float) -> None:
        if not low <= value <= high:  # false for a NaN too
            self.add(field, value, f"must be between {low} and {high}")

    def above(self, field: str, value: float, low: float, high: float) -> None:
        if not low < value <= high:
            self.add(field, value, f"must be above {low} and at most {high}")

    def at_most(self, field: str, count: int, high: int, what: str) -> None:
        if count > high:
            self.add(field, count, f"at most {high} {what}")

    def ids(self, field: str, ids: Sequence[int], vocab_size: int) -> None:
        if ids and max(ids) >= vocab_size:
            at = next(i for i, token_id in enumerate(ids) if token_id >= vocab_size)
            self.add(f"{field}[{at}]", ids[at], f"the vocabulary has {vocab_size} ids")

    def raise_if_any(self) -> None:
        if self.found:
            raise invalid(self.found)


def given_of(message: Message) -> dict[str, Any]:
    """The fields that are set, by name: of those without presence, all that are not their default;
    no list that is empty."""
    return {described.name: value for described, value in message.ListFields()}


def check_call(given: Mapping[str, Any], faults: Faults) -> None:
    """Checks for every call that the engine runs: its names and its priority. given: of its
    request."""
    if "request_id" in given:
        _check_request_id(given["request_id"], faults)
    if "priority" in given:
        faults.between("priority", given["priority"], -MAX_PRIORITY, MAX_PRIORITY)
    for name in ("cache_salt", "user"):
        if name in given:
            faults.at_most(name, len(given[name].encode()), MAX_NAME_BYTES, "bytes")


def _check_request_id(request_id: str, faults: Faults) -> None:
    faults.at_most("request_id", len(request_id), MAX_REQUEST_ID, "characters")
    if len(request_id) <= MAX_REQUEST_ID and not _REQUEST_ID.fullmatch(request_id):
        faults.add("request_id", request_id, "may hold only A-Z a-z 0-9 . _ : -")


def check_sampling(given: Mapping[str, Any], faults: Faults, vocab_size: int) -> None:
    for name, value in given.items():
        if name in RANGES or name in OPEN_RANGES:
            _check_number(name, value, faults)
    if given.get("max_tokens", 1) < 1:
        faults.add("sampling.max_tokens", given["max_tokens"], "must be at least 1")
    if "stop" in given:
        stops = given["stop"]
        faults.at_most("sampling.stop", len(stops), MAX_STOPS, "stop strings")
        for i, stop in enumerate(stops[: MAX_STOPS + 1]):
            faults.between(f"sampling.stop[{i}] (bytes)", len(stop.encode()), 1, MAX_STOP_BYTES)
    if "stop_token_ids" in given:
        stop_ids = given["stop_token_ids"]
        faults.at_most("sampling.stop_token_ids", len(stop_ids), MAX_STOP_IDS, "stop ids")
        if len(stop_ids) <= MAX_STOP_IDS:
            faults.ids("sampling.stop_token_ids", stop_ids, vocab_size)
    for name in ("logit_bias", "allowed_token_ids", "banned_token_ids"):
        if name in given:
            _check_edits(name, given[name], faults, vocab_size)


def _check_edits(name: str, ids: Any, faults: Faults, vocab_size: int) -> None:
    """Single ids that are preferred or left out."""
    faults.at_most(f"sampling.{name}", len(ids), MAX_EDITED_IDS, "token ids")
    if len(ids) > MAX_EDITED_IDS:
        return
    if name != "logit_bias":
        faults.ids(f"sampling.{name}", ids, vocab_size)
        return
    for token_id in sorted(ids):
        where, bias = f"sampling.logit_bias[{token_id}]", ids[token_id]
        if token_id >= vocab_size:
            faults.add(where, token_id, f"the vocabulary has {vocab_size} ids")
        faults.between(where, bias, -MAX_BIAS, MAX_BIAS)


def _check_number(name: str, value: float, faults: Faults) -> None:
    if not math.isfinite(value):
        faults.add(f"sampling.{name}", value, "must be a finite number")
    elif name in OPEN_RANGES:
        faults.above(f"sampling.{name}", value, *OPEN_RANGES[name])
    else:
        faults.between(f"sampling.{name}", value, *RANGES[name])


def check_allowed(params: SamplingParams) -> None:
    """Raise Refusal if a token is required and none of the ids that are allowed may be sampled."""
    allowed = set(params.allowed_token_ids).difference(params.banned_token_ids)
    if not allowed:
        raise invalid_field("sampling.allowed_token_ids", "all of them are in banned_token_ids")
    if params.min_tokens > 1 and allowed <= params.ending_ids:
        raise invalid_field(
            "sampling.allowed_token_ids",
            f"all of them end the output, which min_tokens = {params.min_tokens} forbids",
        )


def check_resume(request: pb.GenerateRequest, faults: Faults, info: EngineInfo) -> None:
    """The checks of resumed ids, where there are any, that need not read through them."""
    ids = request.resume_token_ids
    if request.sampling.n > 1:
        faults.add("resume_token_ids", len(ids), "a request with n > 1 cannot be resumed")
    most = info.max_model_len
    faults.at_most("resume_token_ids", len(ids), most, "tokens: max_model_len")
    if len(ids) <= most:
        faults.ids("resume_token_ids", ids, info.vocab_size)


def check_prompt_logprobs(request: pb.GenerateRequest, faults: Faults) -> None:
    """The checks of prompt log-probabilities, where they are asked for, that need not read the
    prompt."""
    faults.between("prompt_logprobs", request.prompt_logprobs, 0, MAX_LOGPROBS)
    if request.resume_token_ids:
        words = "excludes resume_token_ids: they were told before the tokens that are resumed"
        faults.add("prompt_logprobs", request.prompt_logprobs, words)


def prompt_logprobs_of(top: int, prompt_tokens: int) -> int:
    """How many of the best at each position of a prompt. Raises Refusal if there would be too
    many."""
    count = prompt_tokens * (1 + top)
    if count > MAX_JUDGED:
        raise invalid_field(
            "prompt_logprobs",
            f"{top}: would be {count} log-probabilities of {prompt_tokens} tokens: at most "
            f"{MAX_JUDGED}",
        )
    return top


def check_stops(given: Mapping[str, Any], silent: Collection[str], faults: Faults) -> None:
    """Check stop strings, where there are any, against special tokens, which have no text.

    A stop string that is a special token stands for its id. Refused are stop strings that contain
    one as a part, and asking for it in the output: neither could work as it seems to.
    """
    for i, stop in enumerate(given["stop"][:MAX_STOPS]):
        if len(stop) > MAX_STOP_BYTES:
            continue
        field_name = f"sampling.stop[{i}]"
        if stop in silent:
            if given.get("include_stop_str_in_output"):
                faults.add(
                    field_name,
                    stop,
                    "is a special token, which makes no text: it cannot be included in the "
                    "output (include_stop_str_in_output)",
                )
            continue
        inside = next((token for token in silent if token in stop), None)
        if inside is not None:
            faults.add(
                field_name,
                stop,
                f"holds the special token {show(inside)}, which makes no text, so this could "
                "never match: give the token alone, or its id in sampling.stop_token_ids",
            )

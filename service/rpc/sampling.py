"""A request's sampling parameters: read, checked, and completed with the model's own.

Most clients ask for the same with each call. So a message that has no fault, and no lists, is known
by its bytes from then on, and not read again.

Invariant: what is kept are numbers. A list would keep its whole request alive.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from quire.engine.request import SamplingParams
from quire.service.errors import invalid_field
from quire.service.rpc.field_faults import (
    Faults,
    check_allowed,
    check_sampling,
    check_stops,
    given_of,
)
from quire.service.rpc.random_numbers import RandomNumbers
from quire.service.rpc.served_model import ServedModel
from quire.v1 import inference_pb2 as pb

# Sampling's fields that the service sees to. Any other is the engine's, or `SamplingParams` raises.
OUR_OWN = frozenset({"n", "stop", "include_stop_str_in_output"})
_MOST_KNOWN = 256  # messages


class Asked(NamedTuple):
    """Sampling as a message asks for it. given: its fields that are set. values: SamplingParams'
    fields, if the message is known; None for those that are chosen for each request."""

    message: bytes
    given: Mapping[str, Any]
    values: Mapping[str, Any] | None = None


class Sampling:
    """Reads the sampling of one model's requests. Used on the event loop, but for `params`."""

    def __init__(self, model: ServedModel, random: RandomNumbers, longest: int) -> None:
        """longest: tokens that a prompt may have."""
        self._model = model
        self._random = random
        self._longest = longest
        self._silent = model.tokenizer.silent_tokens
        self._defaults = _defaults(model)
        self._known: dict[bytes, Asked] = {}

    def asked(self, message: pb.SamplingParams) -> Asked:
        """What a message asks for; `check` is next."""
        written = message.SerializeToString()
        return self._known.get(written) or Asked(written, given_of(message))

    def check(self, asked: Asked, faults: Faults) -> None:
        """Collect all faults that show without the prompt being read."""
        if asked.values is not None:
            return
        given, before = asked.given, len(faults.found)
        check_sampling(given, faults, self._model.info.vocab_size)
        if "stop" in given:
            check_stops(given, self._silent, faults)
        if len(faults.found) == before:
            self._keep(asked)

    def params(self, asked: Asked, prompt_tokens: int) -> tuple[SamplingParams, dict[int, str]]:
        """Of what has passed `check`: the values given, else the model's, else greedy; with the ids
        that stand for stop strings. On any thread. Raises Refusal."""
        given, stop_tokens = asked.given, dict[int, str]()
        values = dict(asked.values or self._values(given))
        if "stop" in given:
            ids = tuple(values["stop_token_ids"])
            silent = {self._silent[stop]: stop for stop in given["stop"] if stop in self._silent}
            stop_tokens = {i: stop for i, stop in silent.items() if i not in ids}
            values["stop_token_ids"] = (*ids, *stop_tokens)
        if values["seed"] is None:
            values["seed"] = self._random.seed()
        if values["max_tokens"] is None:
            values["max_tokens"] = self._longest + 1 - prompt_tokens
        params = SamplingParams(**values)
        if params.min_tokens > params.max_tokens:
            raise invalid_field(
                "sampling.min_tokens",
                f"{params.min_tokens}: is more than sampling.max_tokens = {params.max_tokens}",
            )
        if params.allowed_token_ids:
            check_allowed(params)
        return params, stop_tokens

    def _values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        values = {**self._defaults, **given}
        for name in OUR_OWN:
            values.pop(name, None)
        if "logit_bias" in given:
            values["logit_bias"] = tuple(sorted(dict(given["logit_bias"]).items()))
        if "stop_token_ids" in given:
            values["stop_token_ids"] = tuple(given["stop_token_ids"])
        for name in ("allowed_token_ids", "banned_token_ids"):
            if name in given:
                values[name] = tuple(sorted(set(given[name])))
        if values["top_k"] >= self._model.info.vocab_size:
            values["top_k"] = 0
        return values

    def _keep(self, asked: Asked) -> None:
        if all(isinstance(value, int | float) for value in asked.given.values()):
            if len(self._known) >= _MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[asked.message] = asked._replace(values=self._values(asked.given))


def _defaults(model: ServedModel) -> dict[str, Any]:
    """The sampling parameters of a request that sets none. A value of None is chosen for each
    request."""
    values = dataclasses.asdict(SamplingParams(eos_token_ids=model.eos_token_ids))
    values |= {"seed": None, "max_tokens": None}
    recommended = dataclasses.asdict(model.info.generation)
    return values | {name: value for name, value in recommended.items() if value is not None}

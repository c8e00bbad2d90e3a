"""Checks every field of a GenerateRequest; only its prompt is checked elsewhere (`prompts`).

Invariant: what `Validator.validate` returns can be run; everything else is refused with the field,
the value and the limit. No field is accepted and ignored. All simple faults of a message are
reported together.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from quire.engine.request import Constraint, GenerationRequest, SamplingParams
from quire.service.answers.events import Reading
from quire.service.errors import invalid_field, unknown_model
from quire.service.rpc import constraints, tool_constraint
from quire.service.rpc.answer_reading import check_parse, reading_of
from quire.service.rpc.answer_stream import AnswerStream
from quire.service.rpc.constraints import Compiler, check_constraint
from quire.service.rpc.field_faults import (
    Faults,
    check_allowed,
    check_call,
    check_prompt_logprobs,
    check_resume,
    check_sampling,
    check_stops,
    given_of,
    prompt_logprobs_of,
)
from quire.service.rpc.prompts import Prompts
from quire.service.rpc.random_numbers import RandomNumbers
from quire.service.rpc.salt import effective_salt
from quire.service.rpc.served_model import ServedModel
from quire.service.text.stop_strings import StopAutomaton, StopMatch
from quire.service.text.text_stream import TextStream
from quire.service.text.thinking import Thinking
from quire.service.text.tokenizer import Tokenizer
from quire.service.text.workers import PromptWorkers, Wanted, check_wanted
from quire.v1 import inference_pb2 as pb

INLINE_IDS = 4096  # more of them are looked at on another thread, off the event loop
# Of one delta: well below what clients accept. As much stays with gRPC of a call that is not read.
DELTA_BYTES = 256 << 10
_TEXT_BYTES = 3  # in a text, at most, for each byte of a token: U+FFFD
_ID_BYTES, _LOGPROB_BYTES = 8, 48  # of a delta, at most, beside the tokens' own bytes
# Sampling's fields that the service sees to. Any other is the engine's, or `SamplingParams` raises.
OUR_OWN = frozenset({"n", "stop", "include_stop_str_in_output"})
_NO_HEAD = "has no output head and writes nothing: it makes embeddings (Embed)"


class TextOptions(NamedTuple):
    """What the output side needs to make text. A tuple, as each call makes one: a frozen dataclass
    takes three times as long.

    stops: None: no stop strings. stop_tokens: ids that end the request because a stop string is the
    special token of this id. delta_tokens: most tokens of one delta. reading: None: all is text.
    """

    stops: StopAutomaton | None = None
    stop_tokens: Mapping[int, str] = MappingProxyType({})
    include_stop_str_in_output: bool = False
    ids_only: bool = False
    delta_tokens: int = 1024
    reading: Reading | None = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """A stream that has gone through the outputs that the client holds. match: they hold a stop
    string, so that the call was complete already."""

    stream: TextStream | AnswerStream
    match: StopMatch | None


class Accepted(NamedTuple):
    """A request that can run; a tuple as above. resumed: None where nothing is resumed, or no text
    is made."""

    request_id: str
    generation: GenerationRequest
    text: TextOptions
    resumed: Resumed | None = None


class Validator:
    """Turns messages into requests that can run.

    First `check`, which costs next to nothing and runs on the event loop; then `validate`, which
    does all that grows with the prompt on the workers' threads.
    """

    def __init__(
        self, model: ServedModel, workers: PromptWorkers, compiler: Compiler | None = None
    ) -> None:
        """compiler: of constraints. None, or one of another model: a new one, whose first use takes
        long."""
        self._model = model
        self.workers = workers
        self._defaults = _defaults(model)
        self._random = RandomNumbers()
        self.prompts = Prompts(model)
        tokenizer = model.tokenizer
        parts = tokenizer, model.info.vocab_size, model.eos_token_ids
        if compiler is None or compiler.parts != parts:
            compiler = Compiler(*parts)
        self.constraints = compiler
        self._longest_piece, self._silent = tokenizer.longest_piece, tokenizer.silent_tokens

    def check(self, request: pb.GenerateRequest) -> None:
        """Raise Refusal for every fault that shows without the prompt being read."""
        self._check(request, given_of(request), given_of(request.sampling))

    def _check(
        self, request: pb.GenerateRequest, given: Mapping[str, Any], sampling: Mapping[str, Any]
    ) -> None:
        """given, sampling: as `given_of` has them."""
        if given.get("model", self._model.name) != self._model.name:
            raise unknown_model(request.model, self._model.name)
        self._check_fields(request, given, sampling)
        self.prompts.check(request)

    async def validate(
        self, request: pb.GenerateRequest, key: int, tenant: str = "", client: str = ""
    ) -> Accepted:
        """key: the engine's name for it; tenant: whose cache entries it may share; client: whose
        share of the machine it uses. Raises Refusal."""
        given, sampling = given_of(request), given_of(request.sampling)
        self._check(request, given, sampling)
        if self._model.info.embeds_only:
            raise invalid_field("model", f"{self._model.name}: {_NO_HEAD}")

        read = partial(self._read, request, given, sampling, key, tenant, client)
        short = "token_ids" in given and len(given["token_ids"].ids) <= INLINE_IDS
        grows = "stop" in sampling or "resume_token_ids" in given or "constraint" in given
        if short and not grows:
            return read(lambda: True)
        return await self.workers.run(read, client, request.ByteSize())

    def _read(
        self,
        request: pb.GenerateRequest,
        given: Mapping[str, Any],
        sampling: Mapping[str, Any],
        key: int,
        tenant: str,
        client: str,
        wanted: Wanted,
    ) -> Accepted:
        """All that grows with the prompt, the stop strings and the resumed ids; on any thread."""
        prompt, thinking = self.prompts.read(request, wanted)
        params, stop_tokens = self._sampling(sampling, len(prompt))
        of_chat = "chat" in given
        generation = GenerationRequest(
            key=key,
            prompt_token_ids=prompt,
            sampling=params,
            n=sampling.get("n", 1),
            priority=given.get("priority", 0),
            cache_salt=effective_salt(tenant, given.get("cache_salt", "")),
            resume_token_ids=tuple(given.get("resume_token_ids", ())),
            client=client,
            constraint=self._constraint(request, thinking)
            if of_chat or "constraint" in given
            else None,
            user=given.get("user", ""),
            prompt_logprobs=prompt_logprobs_of(given["prompt_logprobs"], len(prompt))
            if "prompt_logprobs" in given
            else None,
        )
        if generation.constraint is not None:
            self.constraints.check(generation)
        ids_only = "ids_only" in given
        options = TextOptions(
            self._stops(sampling["stop"]) if "stop" in sampling else None,
            stop_tokens,
            sampling.get("include_stop_str_in_output", False),
            ids_only,
            self._delta_tokens(generation, ids_only),
            reading_of(request, self._model.family, thinking)
            if of_chat or "parse_output" in given
            else None,
        )
        request_id, resumed = given.get("request_id") or self._random.id(), None
        if generation.resume_token_ids:
            check_wanted(wanted)
            resumed = self._resume(generation, options)
        return Accepted(request_id, generation, options, resumed)

    def _stops(self, given: Iterable[str]) -> StopAutomaton | None:
        stops = [stop for stop in given if stop not in self._silent]
        return StopAutomaton(stops) if stops else None

    def _constraint(self, request: pb.GenerateRequest, thinking: Thinking) -> Constraint | None:
        """The request's constraint, or the one that makes its tool calls valid. Raises Refusal."""
        if not request.HasField("chat"):  # no template has opened a turn: it begins at once
            return constraints.constraint_of(request, Thinking.NONE)
        made = tool_constraint.constraint_of(
            request.chat, self._model.family, self.constraints, thinking
        )
        return made or constraints.constraint_of(request, thinking)

    def _resume(self, generation: GenerationRequest, options: TextOptions) -> Resumed | None:
        if options.ids_only:
            return None
        stream = open_stream(self._model.tokenizer, generation, options)
        return Resumed(stream, stream.replay(generation.resume_token_ids))

    def _delta_tokens(self, generation: GenerationRequest, ids_only: bool) -> int:
        """The most tokens of a delta that always fit into a message."""
        piece = 0 if ids_only else self._longest_piece
        size = _ID_BYTES + _TEXT_BYTES * piece
        asked = generation.sampling.logprobs, generation.prompt_logprobs
        if asked != (None, None):
            best = max(one for one in asked if one is not None)
            size += (1 + best) * (_LOGPROB_BYTES + piece)
        return max(1, DELTA_BYTES // size)

    # ------------------------------------------------------------ fields

    def _check_fields(
        self, request: pb.GenerateRequest, given: Mapping[str, Any], sampling: Mapping[str, Any]
    ) -> None:
        faults, vocab_size = Faults(), self._model.info.vocab_size
        check_call(given, faults)
        if "prompt_logprobs" in given:
            check_prompt_logprobs(request, faults)
        check_sampling(sampling, faults, vocab_size)
        if "stop" in sampling:
            check_stops(sampling, self._silent, faults)
        if "resume_token_ids" in given:
            check_resume(request, faults, self._model.info)
        if "parse_output" in given:
            check_parse(request, self._model.family, faults)
        if "constraint" in given:
            check_constraint(request.constraint, faults)
        if "ids_only" in given and "stop" in sampling:
            faults.add("sampling.stop", len(sampling["stop"]), "no text is made with ids_only")
        if "ids_only" in given and "include_stop_str_in_output" in sampling:
            faults.add("sampling.include_stop_str_in_output", True, "no text is made with ids_only")
        if faults.found:
            faults.raise_if_any()

    def _sampling(
        self, given: Mapping[str, Any], prompt_tokens: int
    ) -> tuple[SamplingParams, dict[int, str]]:
        """The values given, else the model's, else greedy; with the ids that stand for stop
        strings."""
        values, stop_tokens = {**self._defaults, **given}, dict[int, str]()
        for name in OUR_OWN:
            if name in given:
                del values[name]
        if "stop" in given or "stop_token_ids" in given:
            ids = tuple(values["stop_token_ids"])
            silent = {self._silent[s]: s for s in given.get("stop", ()) if s in self._silent}
            stop_tokens = {i: stop for i, stop in silent.items() if i not in ids}
            values["stop_token_ids"] = (*ids, *stop_tokens)
        if "logit_bias" in given:
            values["logit_bias"] = tuple(sorted(dict(values["logit_bias"]).items()))
        for name in ("allowed_token_ids", "banned_token_ids"):
            if name in given:
                values[name] = tuple(sorted(set(values[name])))
        if values["top_k"] >= self._model.info.vocab_size:
            values["top_k"] = 0
        if values["seed"] is None:
            values["seed"] = self._random.seed()
        if values["max_tokens"] is None:
            values["max_tokens"] = self.prompts.longest + 1 - prompt_tokens
        params = SamplingParams(**values)
        if params.min_tokens > params.max_tokens:
            raise invalid_field(
                "sampling.min_tokens",
                f"{params.min_tokens}: is more than sampling.max_tokens = {params.max_tokens}",
            )
        if params.allowed_token_ids:
            check_allowed(params)
        return params, stop_tokens


def open_stream(
    tokenizer: Tokenizer, generation: GenerationRequest, options: TextOptions, index: int = 0
) -> TextStream | AnswerStream:
    """The output stream of one index, from its beginning."""
    text = TextStream(
        tokenizer.text_pieces,
        options.stops,
        include_stop_str_in_output=options.include_stop_str_in_output,
        min_tokens=generation.sampling.min_tokens,
    )
    reading = options.reading
    return text if reading is None else AnswerStream(text, reading, generation, index)


def _defaults(model: ServedModel) -> dict[str, Any]:
    """The sampling parameters of a request that sets none. A value of None is chosen for each
    request."""
    values = dataclasses.asdict(SamplingParams(eos_token_ids=model.eos_token_ids))
    values |= {"seed": None, "max_tokens": None}
    recommended = dataclasses.asdict(model.info.generation)
    return values | {name: value for name, value in recommended.items() if value is not None}

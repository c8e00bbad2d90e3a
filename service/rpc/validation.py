"""Checks every field of a GenerateRequest; only its prompt is checked elsewhere (`prompts`).

Invariant: what `Validator.validate` returns can be run; everything else is refused with the field,
the value and the limit. No field is accepted and ignored. All simple faults of a message are
reported together.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from quire.engine.request import Constraint, GenerationRequest
from quire.service.answers.events import Reading
from quire.service.errors import invalid_field, unknown_model
from quire.service.rpc import constraints, tool_constraint
from quire.service.rpc.answer_reading import check_parse, reading_of
from quire.service.rpc.answer_stream import AnswerStream
from quire.service.rpc.constraints import Compiler, check_constraint
from quire.service.rpc.field_faults import (
    Faults,
    check_call,
    check_prompt_logprobs,
    check_resume,
    given_of,
    prompt_logprobs_of,
)
from quire.service.rpc.prompts import Prompts
from quire.service.rpc.random_numbers import RandomNumbers
from quire.service.rpc.salt import effective_salt
from quire.service.rpc.sampling import Asked, Sampling
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
        self.prompts = Prompts(model)
        self._random = RandomNumbers()
        self._sampling = Sampling(model, self._random, self.prompts.longest)
        tokenizer = model.tokenizer
        parts = tokenizer, model.info.vocab_size, model.eos_token_ids
        if compiler is None or compiler.parts != parts:
            compiler = Compiler(*parts)
        self.constraints = compiler
        self._longest_piece, self._silent = tokenizer.longest_piece, tokenizer.silent_tokens

    def check(self, request: pb.GenerateRequest) -> None:
        """Raise Refusal for every fault that shows without the prompt being read."""
        self._check(request, given_of(request), self._sampling.asked(request.sampling))

    def _check(self, request: pb.GenerateRequest, given: Mapping[str, Any], asked: Asked) -> None:
        """given: the fields that are set. asked: sampling's."""
        if given.get("model", self._model.name) != self._model.name:
            raise unknown_model(request.model, self._model.name)
        self._check_fields(request, given, asked)
        self.prompts.check(request)

    async def validate(
        self, request: pb.GenerateRequest, key: int, tenant: str = "", client: str = ""
    ) -> Accepted:
        """key: the engine's name for it; tenant: whose cache entries it may share; client: whose
        share of the machine it uses. Raises Refusal."""
        given, asked = given_of(request), self._sampling.asked(request.sampling)
        self._check(request, given, asked)
        if self._model.info.embeds_only:
            raise invalid_field("model", f"{self._model.name}: {_NO_HEAD}")

        read = partial(self._read, request, given, asked, key, tenant, client)
        short = "token_ids" in given and len(given["token_ids"].ids) <= INLINE_IDS
        grows = "stop" in asked.given or "resume_token_ids" in given or "constraint" in given
        if short and not grows:
            return read(lambda: True)
        return await self.workers.run(read, client, request.ByteSize())

    def _read(
        self,
        request: pb.GenerateRequest,
        given: Mapping[str, Any],
        asked: Asked,
        key: int,
        tenant: str,
        client: str,
        wanted: Wanted,
    ) -> Accepted:
        """All that grows with the prompt, the stop strings and the resumed ids; on any thread."""
        prompt, thinking = self.prompts.read(request, wanted)
        params, stop_tokens = self._sampling.params(asked, len(prompt))
        sampling, of_chat = asked.given, "chat" in given
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
        self, request: pb.GenerateRequest, given: Mapping[str, Any], asked: Asked
    ) -> None:
        faults, sampling = Faults(), asked.given
        check_call(given, faults)
        if "prompt_logprobs" in given:
            check_prompt_logprobs(request, faults)
        self._sampling.check(asked, faults)
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
        faults.raise_if_any()


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

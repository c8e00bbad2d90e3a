"""Every field of a GenerateRequest is checked here, and nowhere else.

Invariant: what `Validator.validate` returns can be run; everything else is refused with the field,
the value and the limit. No field is accepted and ignored. All simple faults of a message are told
together.
"""

import asyncio
import dataclasses
import hashlib
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from quire.engine.loop.stats import EngineInfo
from quire.engine.request import GenerationRequest, SamplingParams
from quire.service.errors import Refusal, Violation, invalid, invalid_field, show, unknown_model
from quire.service.rpc import messages
from quire.service.text.chat_template import ChatTemplate, TemplateRefusal
from quire.service.text.tokenizer import Tokenizer
from quire.v1 import inference_pb2 as pb

MAX_REQUEST_ID = 128
MAX_SALT_BYTES = 256
MAX_N = 64
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_STOP_IDS = 64
MAX_PRIORITY = 1000
INLINE_BYTES = 2048  # a longer text is tokenized on another thread, off the event loop

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]*")
_RANGES = {  # of sampling's numbers, the ends included
    "temperature": (0, 100),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "n": (1, MAX_N),
    "logprobs": (0, MAX_LOGPROBS),
}
_OPEN_RANGES = {"top_p": (0, 1), "repetition_penalty": (0, 10)}  # the lower end left out


@dataclass(frozen=True, slots=True)
class TextOptions:
    """What the output side needs: stop strings, and whether text is made at all."""

    stops: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    ids_only: bool = False


@dataclass(frozen=True, slots=True)
class Accepted:
    """A request that can run."""

    request_id: str
    generation: GenerationRequest
    text: TextOptions


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What is served, as far as requests are concerned. chat is None: no template."""

    name: str
    info: EngineInfo
    tokenizer: Tokenizer
    chat: ChatTemplate | None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The union of the tokenizer's and the model's."""
        return tuple(sorted({*self.tokenizer.eos_token_ids, *self.info.eos_token_ids}))

    @property
    def cache_tokens(self) -> int:
        """Tokens of one request that the cache can hold; its last needs no place."""
        return self.info.num_blocks * self.info.block_size + 1


class _Faults:
    """Collects what is wrong."""

    def __init__(self) -> None:
        self.found: list[Violation] = []

    def add(self, field: str, value: object, limit: str) -> None:
        self.found.append(Violation(field, f"{show(value)}: {limit}"))

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


class Validator:
    """Turns messages into requests that can run."""

    def __init__(self, model: ServedModel, executor: Executor | None = None) -> None:
        self._model = model
        self._executor = executor
        self._defaults = _defaults(model)
        self._longest_prompt = min(model.info.max_model_len, model.cache_tokens) - 1
        self._max_text_bytes = model.tokenizer.max_text_bytes(model.info.max_model_len)

    async def validate(
        self, request: pb.GenerateRequest, key: int, tenant: str = "", client: str = ""
    ) -> Accepted:
        """key: the engine's name for it; tenant: whose cache entries it may share; client: whose
        share of the machine it uses. Raises Refusal."""
        if request.model and request.model != self._model.name:
            raise unknown_model(request.model, self._model.name)
        sampling = request.sampling
        given = {field.name: value for field, value in sampling.ListFields()}
        self._check_fields(request, given)
        prompt = await self._prompt_ids(request)
        generation = GenerationRequest(
            key=key,
            prompt_token_ids=prompt,
            sampling=self._sampling(given, len(prompt)),
            n=given.get("n", 1),
            priority=request.priority,
            cache_salt=effective_salt(tenant, request.cache_salt),
            resume_token_ids=tuple(request.resume_token_ids),
            client=client,
        )
        options = TextOptions(
            tuple(sampling.stop), sampling.include_stop_str_in_output, request.ids_only
        )
        return Accepted(request.request_id or secrets.token_hex(16), generation, options)

    # ------------------------------------------------------------ fields

    def _check_fields(self, request: pb.GenerateRequest, given: Mapping[str, Any]) -> None:
        faults, vocab_size = _Faults(), self._model.info.vocab_size
        if not _REQUEST_ID.fullmatch(request.request_id):
            faults.add("request_id", request.request_id, "may hold only A-Z a-z 0-9 . _ : -")
        length = len(request.request_id)
        faults.at_most("request_id", length, MAX_REQUEST_ID, "characters")
        faults.between("priority", request.priority, -MAX_PRIORITY, MAX_PRIORITY)
        salt_bytes = len(request.cache_salt.encode())
        faults.at_most("cache_salt", salt_bytes, MAX_SALT_BYTES, "bytes")
        _check_sampling(given, faults, vocab_size)
        self._check_resume(request, faults)
        if request.ids_only and "stop" in given:
            faults.add("sampling.stop", len(given["stop"]), "no text is made with ids_only")
        if request.ids_only and "include_stop_str_in_output" in given:
            faults.add("sampling.include_stop_str_in_output", True, "no text is made with ids_only")
        faults.raise_if_any()

    def _check_resume(self, request: pb.GenerateRequest, faults: _Faults) -> None:
        ids = request.resume_token_ids
        if not ids:
            return
        if request.sampling.n > 1:
            faults.add("resume_token_ids", len(ids), "a request with n > 1 cannot be resumed")
        faults.ids("resume_token_ids", ids, self._model.info.vocab_size)

    def _sampling(self, given: Mapping[str, Any], prompt_tokens: int) -> SamplingParams:
        """Given values, then the model's, then greedy."""
        values = {name: given.get(name, default) for name, default in self._defaults.items()}
        values["stop_token_ids"] = tuple(values["stop_token_ids"])
        if values["top_k"] >= self._model.info.vocab_size:
            values["top_k"] = 0
        if values["seed"] is None:
            values["seed"] = secrets.randbits(64)
        if values["max_tokens"] is None:
            values["max_tokens"] = self._longest_prompt + 1 - prompt_tokens
        params = SamplingParams(**values)
        if params.min_tokens > params.max_tokens:
            raise invalid_field(
                "sampling.min_tokens",
                f"{params.min_tokens}: is more than max_tokens = {params.max_tokens}",
            )
        return params

    # ------------------------------------------------------------ prompt

    async def _prompt_ids(self, request: pb.GenerateRequest) -> tuple[int, ...]:
        kind = request.WhichOneof("prompt")
        if kind is None:
            raise invalid_field("prompt", "is missing: give text, token_ids or chat")
        if kind == "token_ids":
            ids = tuple(request.token_ids.ids)
            faults = _Faults()
            faults.ids("token_ids.ids", ids, self._model.info.vocab_size)
            faults.raise_if_any()
        else:
            ids = tuple(await self._tokenize(request, kind))
        if not ids:
            raise invalid_field(kind, "is empty: at least one token is needed")
        if len(ids) > self._longest_prompt:
            raise invalid_field(
                kind,
                f"{len(ids)} tokens: with one token to make, max_model_len = "
                f"{self._model.info.max_model_len} and the cache of {self._model.cache_tokens} "
                f"leave room for {self._longest_prompt}",
            )
        return ids

    async def _tokenize(self, request: pb.GenerateRequest, kind: str) -> Sequence[int]:
        size = request.chat.ByteSize() if kind == "chat" else len(request.text.encode())
        if size > self._max_text_bytes:
            raise self._too_long(kind, size)
        encode = self._encode_chat if kind == "chat" else self._encode_text
        if size <= INLINE_BYTES:
            return encode(request)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, encode, request)

    def _encode_text(self, request: pb.GenerateRequest) -> Sequence[int]:
        return self._model.tokenizer.encode(request.text, add_special_tokens=True)

    def _encode_chat(self, request: pb.GenerateRequest) -> Sequence[int]:
        if self._model.chat is None:
            raise invalid_field("chat", "the model has no chat template; send text or token_ids")
        conversation = messages.read(request.chat)
        try:
            text = self._model.chat.render(conversation)
        except TemplateRefusal as refusal:
            raise invalid_field(refusal.field, refusal.message) from refusal
        return self._model.tokenizer.encode(text, add_special_tokens=False)

    def _too_long(self, field: str, size: int) -> Refusal:
        return invalid_field(
            field,
            f"{size} bytes: more than max_model_len = {self._model.info.max_model_len} tokens "
            f"can hold ({self._max_text_bytes})",
        )


def effective_salt(tenant: str, salt: str) -> bytes:
    """H(tenant, salt), both with their lengths; empty where both are."""
    if not tenant and not salt:
        return b""
    digest = hashlib.blake2b(digest_size=16)
    for part in (tenant.encode(), salt.encode()):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _defaults(model: ServedModel) -> dict[str, Any]:
    """What a request that says nothing of sampling gets. None: made for each request."""
    values = dataclasses.asdict(SamplingParams(eos_token_ids=model.eos_token_ids))
    values |= {"seed": None, "max_tokens": None}
    recommended = dataclasses.asdict(model.info.generation)
    return values | {name: value for name, value in recommended.items() if value is not None}


def _check_sampling(given: Mapping[str, Any], faults: _Faults, vocab_size: int) -> None:
    for name, value in given.items():
        if name in _RANGES or name in _OPEN_RANGES:
            _check_number(name, value, faults)
    if given.get("max_tokens", 1) < 1:
        faults.add("sampling.max_tokens", given["max_tokens"], "must be at least 1")
    stops = given.get("stop", ())
    faults.at_most("sampling.stop", len(stops), MAX_STOPS, "stop strings")
    for i, stop in enumerate(stops[: MAX_STOPS + 1]):
        faults.between(f"sampling.stop[{i}] (bytes)", len(stop.encode()), 1, MAX_STOP_BYTES)
    stop_ids = given.get("stop_token_ids", ())
    faults.at_most("sampling.stop_token_ids", len(stop_ids), MAX_STOP_IDS, "stop ids")
    faults.ids("sampling.stop_token_ids", stop_ids, vocab_size)


def _check_number(name: str, value: float, faults: _Faults) -> None:
    if not math.isfinite(value):
        faults.add(f"sampling.{name}", value, "must be a finite number")
    elif name in _OPEN_RANGES:
        faults.above(f"sampling.{name}", value, *_OPEN_RANGES[name])
    else:
        faults.between(f"sampling.{name}", value, *_RANGES[name])

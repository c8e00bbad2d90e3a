"""Embed's and Score's messages as requests that the engine can run.

Invariant: as in `validation`: what is returned can be run, everything else is refused with field,
value and limit; what shows without a text being read is told together.

Prompts are those of the models' cards: Qwen3-Embedding's `Instruct: ...\\nQuery:...`, and
Qwen3-Reranker's turn in which the model says "yes" or "no".
"""

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from quire.engine.request import GenerationRequest, Pooling, SamplingParams
from quire.service.errors import TooLong, invalid, invalid_field, unknown_model
from quire.service.rpc.field_faults import Faults, check_call, given_of
from quire.service.rpc.salt import effective_salt
from quire.service.rpc.served_model import ServedModel
from quire.service.text.workers import PromptWorkers, Wanted, check_wanted
from quire.v1 import inference_pb2 as pb

MAX_TEXTS = 2048
MAX_REPEATED = 8 << 20  # bytes, in all of a call's prompts, of the text before each document
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_NO, _YES = "no", "yes"

Request = pb.EmbedRequest | pb.ScoreRequest


@dataclass(frozen=True, slots=True)
class PooledCall:
    """A call that can run: one request a text, in their order."""

    request_id: str
    requests: tuple[GenerationRequest, ...]

    @property
    def tokens(self) -> int:
        """The tokens of all prompts."""
        return sum(len(request.prompt_token_ids) for request in self.requests)


@dataclass(frozen=True, slots=True)
class Sender:
    """What the requests of a call have in common. new_key: makes the engine's name of the next
    one."""

    new_key: Callable[[], int]
    tenant: str
    client: str


class PooledReader:
    """Reads these messages for one model."""

    def __init__(self, model: ServedModel, workers: PromptWorkers) -> None:
        self._model = model
        self._workers = workers
        info, tokenizer = model.info, model.tokenizer
        self._longest = min(info.max_model_len, info.num_blocks * info.block_size)
        self._max_text_bytes = tokenizer.max_text_bytes(info.max_model_len)
        added = sorted({*tokenizer.special_tokens, *tokenizer.added_tokens})
        self._special = re.compile("|".join(map(re.escape, added))) if added else None

    def check(self, request: Request, most_numbers: int) -> None:
        """Raise Refusal for every fault that shows without a text being read. most_numbers: that
        an answer may hold."""
        if request.model and request.model != self._model.name:
            raise unknown_model(request.model, self._model.name)
        faults = Faults()
        check_call(given_of(request), faults)
        if isinstance(request, pb.EmbedRequest):
            self._check_embed(request, most_numbers, faults)
        else:
            self._check_score(request, faults)
        self._check_size("instruction", request.instruction, faults, cut=False)
        repeated = _repeated(request)
        if repeated > MAX_REPEATED:
            field = "instruction" if isinstance(request, pb.EmbedRequest) else "query"
            limit = f"bytes, written before each text: at most {MAX_REPEATED} in a call"
            faults.add(field, repeated, limit)
        faults.raise_if_any()

    async def read(self, request: Request, sender: Sender) -> PooledCall:
        """The part of reading whose cost grows with the texts, for a request that passed `check`.
        Raises Refusal."""

        def work(wanted: Wanted) -> PooledCall:
            prompts = (
                self._embed_prompts(request, wanted)
                if isinstance(request, pb.EmbedRequest)
                else self._score_prompts(request, wanted)
            )
            pooling = Pooling(() if isinstance(request, pb.EmbedRequest) else self._judges())
            salt = effective_salt(sender.tenant, request.cache_salt)
            requests = [
                GenerationRequest(
                    key=sender.new_key(),
                    prompt_token_ids=tuple(prompt),
                    sampling=SamplingParams(max_tokens=1),
                    priority=request.priority,
                    cache_salt=salt,
                    client=sender.client,
                    user=request.user,
                    pooling=pooling,
                )
                for prompt in prompts
            ]
            return PooledCall(request.request_id or secrets.token_hex(16), tuple(requests))

        size = request.ByteSize() + _repeated(request)
        return await self._workers.run(work, sender.client, size)

    # ------------------------------------------------------------ fields

    def _check_embed(self, request: pb.EmbedRequest, most_numbers: int, faults: Faults) -> None:
        inputs, width = request.inputs, self._model.info.hidden_size
        faults.between("inputs", len(inputs), 1, MAX_TEXTS)
        if len(inputs) > MAX_TEXTS:
            return
        if request.HasField("dimensions"):
            faults.between("dimensions", request.dimensions, 1, width)
            width = min(width, request.dimensions)
        if len(inputs) * width > most_numbers:
            limit = f"texts of {width} dimensions: at most {most_numbers} numbers in an answer"
            faults.add("inputs", len(inputs), limit)
        for at, one in enumerate(inputs):
            kind, where = one.WhichOneof("input"), f"inputs[{at}]"
            if kind is None:
                faults.add(where, "nothing", "must hold text or token_ids")
            elif kind == "text":
                self._check_size(f"{where}.text", one.text, faults, cut=request.truncate)
            else:
                self._check_count(f"{where}.token_ids", len(one.token_ids.ids), request, faults)

    def _check_count(
        self, where: str, count: int, request: pb.EmbedRequest, faults: Faults
    ) -> None:
        if not count:
            faults.add(where, 0, "at least one token is needed")
        if count > self._longest and not request.truncate:
            faults.too_long(where, count, self._room(0))
        if request.instruction:
            faults.add("instruction", request.instruction, f"goes with text, and {where} is ids")

    def _check_score(self, request: pb.ScoreRequest, faults: Faults) -> None:
        if self._model.info.embeds_only:
            faults.add("model", self._model.name, "has no output head, and cannot say yes or no")
        tokens = self._model.tokenizer.backend
        for word in (_NO, _YES):
            if tokens.token_to_id(word) is None:
                faults.add("model", self._model.name, f"its vocabulary has no token {word!r}")
        if not request.query:
            faults.add("query", request.query, "is missing")
        faults.between("documents", len(request.documents), 1, MAX_TEXTS)
        self._check_size("query", request.query, faults, cut=False)
        for at, document in enumerate(request.documents[:MAX_TEXTS]):
            self._check_size(f"documents[{at}]", document, faults, cut=request.truncate)

    def _check_size(self, where: str, text: str, faults: Faults, *, cut: bool) -> None:
        """A text that could not be short enough in tokens. cut: it is cut, if need be."""
        size = len(text.encode())
        if size > self._max_text_bytes and not cut:
            limit = f"more bytes than {self._longest} tokens can hold ({self._max_text_bytes})"
            faults.too_long(where, size, limit)

    def _room(self, around: int) -> str:
        info = self._model.info
        beside = f", {around} of them beside the text," if around else ""
        return (
            f"tokens: max_model_len = {info.max_model_len} and the cache of "
            f"{info.num_blocks * info.block_size} have room for {self._longest}{beside} "
            "(truncate = true cuts)"
        )

    # ------------------------------------------------------------ prompts

    def _embed_prompts(self, request: pb.EmbedRequest, wanted: Wanted) -> Iterator[Sequence[int]]:
        for at, one in enumerate(request.inputs):
            check_wanted(wanted)
            if one.WhichOneof("input") == "token_ids":
                ids, faults = one.token_ids.ids[: self._longest], Faults()
                faults.ids(f"inputs[{at}].token_ids.ids", ids, self._model.info.vocab_size)
                faults.raise_if_any()
                yield ids
                continue
            text = one.text
            if request.instruction:
                text = f"Instruct: {request.instruction}\nQuery:{text}"
            yield self._embed_ids(f"inputs[{at}].text", text, cut=request.truncate)

    def _embed_ids(self, where: str, text: str, *, cut: bool) -> Sequence[int]:
        """The ids of a text with those that the tokenizer puts around it, which stay when the text
        is cut."""
        encode = self._model.tokenizer.encode
        ids = encode(text, add_special_tokens=True)
        if not ids:
            raise invalid_field(where, "is empty: at least one token is needed")
        if len(ids) <= self._longest:
            return ids
        if not cut:
            raise invalid([TooLong(where, f"{len(ids)} {self._room(0)}")])
        bare = encode(text, add_special_tokens=False)
        around = len(ids) - len(bare)
        before = next((n for n in range(around) if ids[n : n + len(bare)] == bare), around)
        kept = bare[: max(self._longest - around, 0)]
        return [*ids[:before], *kept, *ids[before + len(bare) :]][: self._longest]

    def _score_prompts(self, request: pb.ScoreRequest, wanted: Wanted) -> Iterator[Sequence[int]]:
        encode = self._model.tokenizer.encode
        prefix, suffix = (encode(part, add_special_tokens=False) for part in (PREFIX, SUFFIX))
        instruction = request.instruction or INSTRUCTION
        if not request.allow_special_tokens:
            self._refuse_special("instruction", request.instruction)
            self._refuse_special("query", request.query)
        around = len(prefix) + len(suffix)
        for at, document in enumerate(request.documents):
            check_wanted(wanted)
            where = f"documents[{at}]"
            if not request.allow_special_tokens:
                self._refuse_special(where, document)
            asked = f"<Instruct>: {instruction}\n<Query>: {request.query}\n<Document>: "
            ids = encode(asked + document, add_special_tokens=False)
            if len(ids) + around > self._longest:
                self._refuse_long(where, asked, len(ids), around, cut=request.truncate)
                ids = ids[: self._longest - around]
            yield [*prefix, *ids, *suffix]

    def _refuse_long(self, where: str, asked: str, tokens: int, around: int, *, cut: bool) -> None:
        """Unless the document may be cut, and something of it then stays."""
        if not cut:
            raise invalid([TooLong(where, f"{tokens} {self._room(around)}")])
        question = len(self._model.tokenizer.encode(asked, add_special_tokens=False))
        if question + around >= self._longest:
            limit = f"{question} tokens with its instruction: no room is left for a document"
            limit += f": {self._longest} in all, {around} around them"
            raise invalid([TooLong("query", limit)])

    def _refuse_special(self, where: str, text: str) -> None:
        found = None if self._special is None else self._special.search(text)
        if found is not None:
            raise invalid_field(
                where, f"holds the special token {found[0]!r}: see allow_special_tokens"
            )

    def _judges(self) -> tuple[int, ...]:
        ids = map(self._model.tokenizer.backend.token_to_id, (_NO, _YES))
        return tuple(i for i in ids if i is not None)  # both, as `check` has seen


def _repeated(request: Request) -> int:
    """Bytes of the instruction, and the query, as often as they are written."""
    size = len(request.instruction.encode())
    if isinstance(request, pb.EmbedRequest):
        return size * len(request.inputs)
    return (size + len(request.query.encode())) * len(request.documents)

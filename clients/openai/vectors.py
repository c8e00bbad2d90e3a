"""The bodies of /v1/embeddings and /v1/rerank as messages of the contract, and the answers to them.

Embeddings are OpenAI's; reranking is Jina's and Cohere's, which agree in what most callers use.
"""

import base64
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quire.clients.openai.faults import Faults
from quire.clients.openai.field_names import Names
from quire.clients.openai.fields import Fields, put_all
from quire.v1 import inference_pb2 as pb

MAX_TEXTS = 2048  # of one call; the server has the same limit
_INT32 = (1 << 31) - 1
RERANK_NAMES = Names()


@dataclass(frozen=True, slots=True)
class EmbeddingsBody:
    """request: the call. several: `input` was a list of texts. packed: base64 is wanted."""

    request: pb.EmbedRequest
    several: bool
    packed: bool

    @property
    def names(self) -> Names:
        """What the body calls the fields."""
        if not self.several:
            kinds = [f"inputs[0].{kind}" for kind in _KINDS]
            return Names(dict.fromkeys([*kinds, "inputs"], "input"))
        count = range(len(self.request.inputs))
        given = {f"inputs[{i}].{kind}": f"input[{i}]" for i in count for kind in _KINDS}
        return Names({**given, "inputs": "input"})

    def answer(self, told: pb.EmbedResponse, model: str) -> dict[str, Any]:
        """What OpenAI's clients read. In base64 numbers are float32, little-endian."""
        data = [
            {"object": "embedding", "index": i, "embedding": self._written(one.values)}
            for i, one in enumerate(told.embeddings)
        ]
        return {"object": "list", "data": data, "model": model, "usage": _usage(told.usage)}

    def _written(self, values: Sequence[float]) -> list[float] | str:
        if not self.packed:
            return list(values)
        numbers = array("f", values)
        if array("H", [1]).tobytes() != b"\x01\x00":
            numbers.byteswap()
        return base64.b64encode(numbers.tobytes()).decode()


_KINDS = ("token_ids.ids", "token_ids", "text")


def read_embeddings(values: dict[str, Any], request_id: str = "") -> EmbeddingsBody:
    """Raises BadBody, with all faults of the body."""
    faults = Faults()
    body = Fields(values, faults)
    request = pb.EmbedRequest(request_id=request_id)
    several = _read_input(body, request)
    encoding = body.text("encoding_format")
    if encoding not in (None, "float", "base64"):
        body.fault("encoding_format", encoding, "must be float or base64")
    dimensions = body.whole("dimensions")
    if dimensions is not None:
        request.dimensions = dimensions
    request.instruction = body.text("instruction") or ""
    request.truncate = body.flag("truncate") or False
    _read_call(body, request)
    body.end()
    faults.raise_if_any()
    return EmbeddingsBody(request, several, encoding == "base64")


def _read_input(body: Fields, request: pb.EmbedRequest) -> bool:
    """Returns whether it was a list of texts."""
    given = body.value("input")
    if given is None:
        body.fault("input", None, "is missing")
        return False
    several = isinstance(given, list) and bool(given) and isinstance(given[0], str | list)
    for i, one in enumerate(_counted(body, "input", given) if several else [given]):
        where = f"input[{i}]" if several else "input"
        read = body.text_or_ids(where, one)
        if isinstance(read, str):
            request.inputs.add(text=read)
        else:
            put_all(request.inputs.add(token_ids=pb.TokenIds()).token_ids.ids, read or [])
    return several


def _counted(body: Fields, field: str, texts: list[Any]) -> list[Any]:
    """The texts; none of them, which is a fault, where there are too many to look at each."""
    if len(texts) <= MAX_TEXTS:
        return texts
    body.fault(field, len(texts), f"must be between 1 and {MAX_TEXTS}")
    return []


def _read_call(body: Fields, request: pb.EmbedRequest | pb.ScoreRequest) -> None:
    """What every call may say; `priority` has vLLM's sense, where the lower runs first."""
    request.model = body.text("model") or ""
    request.user = body.text("user") or ""
    request.cache_salt = body.text("cache_salt") or ""
    request.priority = -(body.whole("priority", low=-_INT32, high=_INT32) or 0)


@dataclass(frozen=True, slots=True)
class RerankBody:
    """request: the call. most: results that are wanted. shown: with their documents."""

    request: pb.ScoreRequest
    most: int | None
    shown: bool

    def answer(self, told: pb.ScoreResponse, model: str) -> dict[str, Any]:
        """The best first; of equal ones the earlier."""
        order = sorted(range(len(told.scores)), key=lambda i: (-told.scores[i], i))
        results: list[dict[str, Any]] = []
        for i in order[: self.most]:
            result: dict[str, Any] = {"index": i, "relevance_score": told.scores[i]}
            if self.shown:
                result["document"] = {"text": self.request.documents[i]}
            results.append(result)
        usage = _usage(told.usage)
        return {"id": told.request_id, "model": model, "results": results, "usage": usage}


def read_rerank(values: dict[str, Any], request_id: str = "") -> RerankBody:
    """Raises BadBody, with all faults of the body."""
    faults = Faults()
    body = Fields(values, faults)
    request = pb.ScoreRequest(request_id=request_id)
    for needed in ("query", "documents"):
        body.require(needed)
    request.query = body.text("query") or ""
    for i, one in enumerate(_counted(body, "documents", body.items("documents"))):
        request.documents.append(_document(body, f"documents[{i}]", one))
    most = body.whole("top_n", low=1)
    shown = body.flag("return_documents") or False
    request.instruction = body.text("instruction") or ""
    request.truncate = body.flag("truncate") or False
    request.allow_special_tokens = body.flag("allow_special_tokens") or False
    _read_call(body, request)
    body.end()
    faults.raise_if_any()
    return RerankBody(request, most, shown)


def _document(body: Fields, where: str, value: object) -> str:
    """A text, or an object that holds one."""
    if isinstance(value, dict) and set(value) == {"text"}:
        value = value["text"]
    if isinstance(value, str):
        return value
    body.fault(where, value, "must be a string, or an object with text alone")
    return ""


def _usage(usage: pb.PromptUsage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }

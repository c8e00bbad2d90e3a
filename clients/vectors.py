"""Embeddings and scores: what callers pass as messages, and what comes back."""

from collections.abc import Sequence
from typing import Any, TypedDict

from quire.clients import arguments
from quire.clients.errors import OptionError
from quire.v1 import inference_pb2 as pb

Text = str | Sequence[int]
_INT32, _UINT32 = (1 << 31) - 1, (1 << 32) - 1


class CallOptions(TypedDict, total=False):
    """The keywords that embed and score share; see EmbedRequest."""

    instruction: str
    truncate: bool
    request_id: str
    priority: int
    cache_salt: str
    model: str
    user: str


class EmbedOptions(CallOptions, total=False):
    """The keywords of `embed`."""

    dimensions: int


class ScoreOptions(CallOptions, total=False):
    """The keywords of `score`."""

    allow_special_tokens: bool


_FLAGS = ("truncate", "allow_special_tokens")


def build_embed(texts: Sequence[Text], options: EmbedOptions) -> pb.EmbedRequest:
    """The message; OptionError names what it cannot hold."""
    request = pb.EmbedRequest()
    for i, one in enumerate(arguments.items("texts", texts, "texts or lists of token ids")):
        where = f"texts[{i}]"
        if isinstance(one, str):
            request.inputs.add(text=arguments.text(where, one))
            continue
        ids = arguments.items(where, one, "token ids")
        checked = [arguments.integer(f"{where}[{j}]", x, 0, _UINT32) for j, x in enumerate(ids)]
        request.inputs.add(token_ids=pb.TokenIds(ids=checked))
    _set(request, options)
    return request


def build_score(query: str, documents: Sequence[str], options: ScoreOptions) -> pb.ScoreRequest:
    """The message; OptionError names what it cannot hold."""
    listed = arguments.items("documents", documents, "texts")
    request = pb.ScoreRequest(
        query=arguments.text("query", query), documents=arguments.texts("documents", listed)
    )
    _set(request, options)
    return request


def embeddings_of(response: pb.EmbedResponse) -> list[list[float]]:
    """One for each text, in their order."""
    return [list(one.values) for one in response.embeddings]


def _set(request: Any, options: EmbedOptions | ScoreOptions) -> None:
    for name, value in options.items():
        if name not in request.DESCRIPTOR.fields_by_name or name in ("inputs", "query"):
            raise OptionError(f"{name}: is not an option of this call")
        if value is None:
            continue
        if name in _FLAGS:
            setattr(request, name, arguments.flag(name, value))
        elif name == "dimensions":
            request.dimensions = arguments.integer(name, value, 0, _UINT32)
        elif name == "priority":
            request.priority = arguments.integer(name, value, -_INT32, _INT32)
        else:
            setattr(request, name, arguments.text(name, value))

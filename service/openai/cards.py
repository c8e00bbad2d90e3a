"""The served model as /v1/models and /v1/models/NAME describe it."""

from collections.abc import Mapping

from starlette.responses import JSONResponse

from quire.service import errors

Card = Mapping[str, object]


def card(name: str, created: int, max_model_len: int) -> Card:
    """The model object that OpenAI's clients read. created: Unix time, in seconds."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "quire",
        "max_model_len": max_model_len,
    }


def listing(model: Card) -> JSONResponse:
    """All models: one."""
    return JSONResponse({"object": "list", "data": [model]})


def named(model: Card, name: str) -> JSONResponse:
    """The model of a name. Raises Refusal for another one's."""
    if name != model["id"]:
        raise errors.unknown_model(name, str(model["id"]))
    return JSONResponse(model)

"""`response_format`, `text.format`, `output_config.format` and `structured_outputs` as the
contract's Constraint."""

import json
from typing import Any

from quire.clients import large_json
from quire.clients.openai.fields import SHORT, Fields
from quire.v1 import inference_pb2 as pb

OTHER_NAMES = tuple(  # of older vLLM, and of SGLang
    (name, f"is not supported: use structured_outputs = {{{json.dumps(kind)}: …}}")
    for name, kind in (
        ("guided_json", "json"),
        ("guided_regex", "regex"),
        ("guided_choice", "choice"),
        ("guided_grammar", "grammar"),
        ("json_schema", "json"),
        ("regex", "regex"),
        ("ebnf", "grammar"),
    )
)
_BARE = ("schema", "value")  # of json_object: a schema, for llama.cpp and for Hugging Face's server
_FORMATS = ("text", "json_object", "json_schema")
_KINDS = ("json", "json_object", "regex", "choice", "grammar")

Named = dict[str, str]


def read(body: Fields, request: pb.GenerateRequest) -> Named:
    """Sets the request's constraint. Returns the contract's fields under the names given."""
    return _one_of(body, _structured(body, request), "response_format", _format(body, request))


def read_text(body: Fields, request: pb.GenerateRequest) -> Named:
    """The same where the format stands in `text`, and the schema in the format itself."""
    text, formatted = body.nested("text"), Named()
    if text is not None:
        formatted = _flat_format(text, "format", request)
        text.only("verbosity", "medium", why="must be medium: ask for another in a message")
        text.end()
    return _one_of(body, _structured(body, request), "text.format", formatted)


def read_output(body: Fields, config: Fields | None, request: pb.GenerateRequest) -> Named:
    """The same where it stands in `output_config`, or under the name that it had before."""
    older = _flat_format(body, "output_format", request)
    newer = Named() if config is None else _flat_format(config, "format", request)
    if older and newer:
        body.fault("output_format", {}, "excludes output_config.format: give one of the two")
    return _one_of(body, _structured(body, request), "output_config.format", newer or older)


def _one_of(body: Fields, structured: Named, name: str, formatted: Named) -> Named:
    if structured and formatted:
        body.fault("structured_outputs", {}, f"excludes {name}: give one of the two")
    return structured or formatted


def _flat_format(body: Fields, field: str, request: pb.GenerateRequest) -> Named:
    given, told = body.nested(field), body.name(field)
    if given is None:
        return {}
    kind = _kind(given)
    if kind == "json_schema":
        for name in ("name", "description"):
            given.text(name, SHORT)
        given.flag("strict")
        given.require("schema")
        request.constraint.json_schema = given.json_text("schema")
    elif kind == "json_object":
        request.constraint.json_object = True
    given.end()
    if kind not in _FORMATS[1:]:
        return {}
    return {
        "constraint.json_schema": f"{told}.schema",
        "constraint.json_object": f"{told}.type",
        "constraint": told,
    }


def _kind(given: Fields) -> Any:
    kind = given.value("type")
    if kind not in _FORMATS:
        given.fault("type", kind, f"must be one of {', '.join(_FORMATS)}")
    return kind


def _format(body: Fields, request: pb.GenerateRequest) -> Named:
    given = body.nested("response_format")
    if given is None:
        return {}
    kind = _kind(given)
    bare = next((name for name in _BARE if kind == "json_object" and given.has(name)), None)
    written = "" if bare is None else _schema(given, bare)
    if written not in ("", "{}", "true"):  # of these any value is valid
        request.constraint.json_schema = written
    elif kind == "json_object":
        request.constraint.json_object = True
    schema = given.nested("json_schema")
    if kind == "json_schema" and schema is None:
        given.fault("json_schema", None, "is missing")
    elif schema is not None and kind != "json_schema":
        given.fault("json_schema", {}, 'goes with type "json_schema" alone')
    elif schema is not None:
        schema.passed_over("name", "description", "strict")
        request.constraint.json_schema = _schema(schema, "schema")
        schema.end()
    given.end()
    if kind not in _FORMATS[1:]:
        return {}
    return {
        "constraint.json_schema": f"response_format.{bare or 'json_schema.schema'}",
        "constraint.json_object": "response_format.type",
        "constraint": "response_format",
    }


def _structured(body: Fields, request: pb.GenerateRequest) -> Named:
    given = body.nested("structured_outputs")
    if given is None:
        return {}
    kinds = [kind for kind in _KINDS if given.has(kind)]
    if len(kinds) != 1:
        body.fault("structured_outputs", {}, f"must hold exactly one of {', '.join(_KINDS)}")
    constraint = request.constraint
    if given.has("json"):
        constraint.json_schema = _schema(given, "json")
    wanted = given.flag("json_object")
    if wanted is not None:
        constraint.json_object = wanted  # false is refused where the contract's is
    for kind in ("regex", "grammar"):
        text = given.text(kind)
        if text is not None:
            setattr(constraint, kind, text)
    if given.has("choice"):
        constraint.choice.options.extend(given.texts("choice"))
    given.end()
    return {
        "constraint.json_schema": "structured_outputs.json",
        "constraint.choice.options": "structured_outputs.choice",
        "constraint": "structured_outputs",
    }


def _schema(given: Fields, field: str) -> str:
    """A schema as text: an object, or JSON text that is passed on as it is."""
    value: Any = given.value(field)
    if isinstance(value, str):
        return value
    if isinstance(value, dict | bool):
        return large_json.dumps(value, ensure_ascii=False)
    given.fault(field, value, "must be a JSON schema")
    return ""

"""Content that is a text, or a list of parts of text."""

from collections.abc import Sequence

from quire.clients.openai.fields import Fields

PASSED_OVER = ("cache_control", "prompt_cache_breakpoint")  # see sampling.PASSED_OVER


def read(
    body: Fields, field: str, kinds: Sequence[str], passed_over: Sequence[str] = PASSED_OVER
) -> str:
    """The text; of parts, which are of these types, joined without anything between them. Empty:
    not given."""
    value = body.value(field)
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        body.fault(field, value, "must be a string or a list of parts")
        return ""
    texts = []
    for i, given in enumerate(value):
        part = body.item(f"{field}[{i}]", given)
        if part is None:
            continue
        kind = part.value("type")
        if kind not in kinds:
            allowed = " or ".join(f'"{one}"' for one in kinds)
            part.fault("type", kind, f"must be {allowed}: this model reads text alone")
            continue
        texts.append(read_one(part, passed_over))
    return "".join(texts)


def read_one(part: Fields, passed_over: Sequence[str] = PASSED_OVER) -> str:
    """The text of a part whose type has been taken."""
    text = part.required_text("text")
    part.passed_over(*passed_over)
    part.end()
    return text

"""Position encoding in a Hugging Face config.json: rope_parameters (5.x) or rope_scaling (4.x).

Invariant: the section is read whole. A key that its type of scaling does not know, a section nested
by layer type, and two places that say different things are refused by their path.
"""

import math
from typing import Any

from quire.engine.json_file import JsonFile
from quire.engine.model.config import Llama3Scaling, RopeScaling

MAX_POSITIONS = 1 << 22
MAX_THETA = 1e12
MAX_FACTOR = 1e6
_KNOWN_ALWAYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_KNOWN_TO_YARN = (
    *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
    *("mscale", "mscale_all_dim", "truncate"),
)
_KNOWN_TO_LLAMA3 = (
    "factor",
    "original_max_position_embeddings",
    "low_freq_factor",
    "high_freq_factor",
)
_KNOWN_TO = {"default": (), "yarn": _KNOWN_TO_YARN, "llama3": _KNOWN_TO_LLAMA3}
_SECTIONS = ("rope_parameters", "rope_scaling")


def read_rope(config: JsonFile) -> tuple[float, RopeScaling | Llama3Scaling | None, int]:
    """Base of the rotary frequencies, their scaling, and the number of positions."""
    positions = config.integer("max_position_embeddings", most=MAX_POSITIONS)
    config.only("partial_rotary_factor", 1)
    section = _section(config)
    if section is None:
        return config.number("rope_theta", 10_000.0, above=1, most=MAX_THETA), None, positions
    kind = _kind(section)
    _refuse_unknown(section, kind)
    theta = _theta(config, section)
    if kind == "default":
        return theta, None, positions
    if kind == "llama3":
        return theta, _llama3(section), positions
    scaling = _yarn(section, positions)
    stretched = int(scaling.factor * scaling.original_max_position_embeddings)
    if stretched > MAX_POSITIONS:
        section.refuse("factor", f"makes {stretched} positions, at most {MAX_POSITIONS}")
    return theta, scaling, max(positions, stretched)


def _section(config: JsonFile) -> JsonFile | None:
    """The one section, or either of two that say the same."""
    new, old = (config.section(key) for key in _SECTIONS)
    if new is not None and old is not None and _said(config, new) != _said(config, old):
        config.refuse("rope_scaling", "contradicts rope_parameters")
    found = new if new is not None else old
    return found if found is not None and any(map(found.has, found.data)) else None


def _said(config: JsonFile, section: JsonFile) -> dict[str, Any]:
    """A section without nulls, and with the older key `type` as rope_type."""
    said = {key: value for key, value in section.data.items() if value is not None}
    if "type" in said:
        said.setdefault("rope_type", said.pop("type"))
    said.setdefault("rope_theta", config.data.get("rope_theta"))
    return said


def _kind(section: JsonFile) -> str:
    """One of _KNOWN_TO."""
    for key in section.data:
        if isinstance(section.data[key], dict):
            section.refuse(key, "is nested by layer type, which is not supported")
    for key in ("rope_type", "type"):
        section.only(key, *_KNOWN_TO)
    new, old = section.string("rope_type", None), section.string("type", None)
    if new is not None and old is not None and new != old:
        section.refuse("type", f"contradicts rope_type = {new}")
    return new or old or "default"


def _refuse_unknown(section: JsonFile, kind: str) -> None:
    known = _KNOWN_ALWAYS + _KNOWN_TO[kind]
    for key in filter(section.has, section.data):
        if key not in known:
            section.refuse(key, f"unknown for {kind}; known: {', '.join(sorted(known))}")
    section.only("partial_rotary_factor", 1)


def _theta(config: JsonFile, section: JsonFile) -> float:
    outer = config.number("rope_theta", None, above=1, most=MAX_THETA)
    inner = section.number("rope_theta", None, above=1, most=MAX_THETA)
    if outer is not None and inner is not None and outer != inner:
        section.refuse("rope_theta", f"contradicts the file's own rope_theta = {outer:g}")
    return inner or outer or 10_000.0


def _llama3(section: JsonFile) -> Llama3Scaling:
    """Llama 3's scaling. The longest context is max_position_embeddings as it is."""
    low = section.number("low_freq_factor", above=0, most=MAX_FACTOR)
    high = section.number("high_freq_factor", above=0, most=MAX_FACTOR)
    if high <= low:
        section.refuse("high_freq_factor", f"must be above low_freq_factor = {low:g}")
    return Llama3Scaling(
        factor=section.number("factor", least=1, most=MAX_FACTOR),
        original_max_position_embeddings=section.integer(
            "original_max_position_embeddings", most=MAX_POSITIONS
        ),
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _yarn(section: JsonFile, positions: int) -> RopeScaling:
    original = section.integer("original_max_position_embeddings", positions, most=MAX_POSITIONS)
    factor = section.number("factor", positions / original, above=0, most=MAX_FACTOR)
    attention_factor = section.number("attention_factor", None, above=0, most=MAX_FACTOR)
    if attention_factor is None:
        attention_factor = _attention_factor(section, factor)
    fast = section.number("beta_fast", 32.0, above=0, most=MAX_FACTOR)
    slow = section.number("beta_slow", 1.0, above=0, most=MAX_FACTOR)
    if fast < slow:
        section.refuse("beta_fast", f"must be at least beta_slow = {slow:g}")
    return RopeScaling(
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=attention_factor,
        beta_fast=fast,
        beta_slow=slow,
        truncate=section.boolean("truncate", True),
    )


def _attention_factor(section: JsonFile, factor: float) -> float:
    """0.1 ln(factor) + 1, or the ratio of two such terms where both mscales are given."""

    def term(mscale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    mscale = section.number("mscale", None, least=0, most=MAX_FACTOR)
    mscale_all_dim = section.number("mscale_all_dim", None, least=0, most=MAX_FACTOR)
    if mscale and mscale_all_dim:
        return term(mscale) / term(mscale_all_dim)
    return term(1.0)

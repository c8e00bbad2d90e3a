"""Sliding windows in config.json.

Invariant: all layers with a window have the same one. Which layers those are comes from layer_types
if it is there, as in transformers, else from max_window_layers.
"""

import enum
from typing import NamedTuple

from quire.engine.json_file import JsonFile

_FULL, _SLIDING = "full_attention", "sliding_attention"


class WindowKeys(enum.Enum):
    """How an architecture's file asks for a window.

    NONE: it cannot; sliding_window means nothing there, and use_sliding_window is refused. ALONE:
    sliding_window applies to every layer; null is none. SWITCHED: if use_sliding_window is true, it
    applies to some layers or all.
    """

    NONE = enum.auto()
    ALONE = enum.auto()
    SWITCHED = enum.auto()


class Windows(NamedTuple):
    """window: tokens that each sees, or None for all; full_layers: those that see all where the
    others have a window."""

    window: int | None = None
    full_layers: tuple[int, ...] = ()


def read_windows(config: JsonFile, keys: WindowKeys, default: int | None) -> Windows:
    """The windows of a configuration. default: tokens of a window if the file does not say. Raises
    ConfigError."""
    if keys is WindowKeys.SWITCHED:
        return _switched(config, default)
    window = None
    if keys is WindowKeys.ALONE:
        silent = "sliding_window" not in config.data
        window = default if silent else config.integer("sliding_window", None)
    else:
        config.only("use_sliding_window", False)
    _layer_types(config, _FULL if window is None else _SLIDING)
    return Windows(window)


def _switched(config: JsonFile, default: int | None) -> Windows:
    """The first max_window_layers layers see everything and the rest a window, unless layer_types
    says which do."""
    layers = config.integer("num_hidden_layers")
    if not config.boolean("use_sliding_window", False):
        _layer_types(config, _FULL)
        return Windows()
    first = config.integer("max_window_layers", 28, least=0)
    types = _layer_types(config, _FULL, _SLIDING)
    if types is None:
        types = [_FULL if layer < first else _SLIDING for layer in range(layers)]
    full = tuple(layer for layer, kind in enumerate(types) if kind == _FULL)
    if len(full) == layers:
        return Windows()
    return Windows(config.integer("sliding_window", default), full)


def _layer_types(config: JsonFile, *kinds: str) -> list[str] | None:
    """The kind of each layer, all of `kinds`; None where the file does not tell."""
    types: object = config.data.get("layer_types")
    if types is None:
        return None
    if not isinstance(types, list) or any(one not in kinds for one in types):
        every = " or ".join(f'"{kind}"' for kind in kinds)
        config.refuse("layer_types", f"supported: {every} in every layer")
    layers = config.integer("num_hidden_layers")
    if len(types) != layers:
        config.refuse("layer_types", f"must name {layers} layers")
    return types

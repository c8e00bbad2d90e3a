"""Sliding windows, as configurations name them.

Invariant: all layers with a window see the same one. Which layers those are is told by layer_types
where it is there, as transformers has it, else by max_window_layers.
"""

import enum
from typing import NamedTuple

from quire.engine.json_file import JsonFile

_FULL, _SLIDING = "full_attention", "sliding_attention"


class WindowKeys(enum.Enum):
    """How an architecture's file asks for a window. NONE: not at all; sliding_window means nothing
    there, and use_sliding_window is refused. ALONE: sliding_window is every layer's, null is none.
    SWITCHED: where use_sliding_window is true, that of some layers or of all."""

    NONE = enum.auto()
    ALONE = enum.auto()
    SWITCHED = enum.auto()


class Windows(NamedTuple):
    """window: tokens that each sees, or None for all; full_layers: those that see all where the
    others have a window."""

    window: int | None = None
    full_layers: tuple[int, ...] = ()


def read_windows(config: JsonFile, keys: WindowKeys, default: int | None) -> Windows:
    """What a configuration says of them. default: tokens of one where the file does not speak of
    it. Raises ConfigError."""
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
    """The first max_window_layers layers see all, and those behind them a window, unless
    layer_types says which do."""
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

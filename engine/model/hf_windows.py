"""Sliding windows, as configurations name them.

Invariant: all layers with a window see the same one. Which layers those are is told by layer_types
where it is there, as transformers has it, else by max_window_layers; in Mistral all layers are.
"""

from typing import NamedTuple

from quire.engine.json_file import JsonFile
from quire.engine.model.config import MISTRAL, QWEN2

_MISTRAL_WINDOW = 4096  # where the file does not name it; null: there is none
_FULL, _SLIDING = "full_attention", "sliding_attention"


class Windows(NamedTuple):
    """window: tokens that each sees, or None for all; full_layers: those that see all where the
    others have a window."""

    window: int | None = None
    full_layers: tuple[int, ...] = ()


def read_windows(config: JsonFile, architecture: str) -> Windows:
    """What a configuration says of them. Raises ConfigError."""
    if architecture == QWEN2:
        return _of_qwen2(config)
    window = None
    if architecture == MISTRAL:
        window = config.integer("sliding_window", None)
        if "sliding_window" not in config.data:
            window = _MISTRAL_WINDOW
    else:
        config.only("use_sliding_window", False)
    _layer_types(config, _FULL if window is None else _SLIDING)
    return Windows(window)


def _of_qwen2(config: JsonFile) -> Windows:
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
    return Windows(config.integer("sliding_window", 4096), full)


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

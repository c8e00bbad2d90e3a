"""Sliding windows, as configurations name them.

Invariant: either every layer sees the same window, or none has one; models that mix the two are
refused by the key that says so.
"""

from quire.engine.json_file import JsonFile
from quire.engine.model.config import MISTRAL, QWEN2

_MISTRAL_WINDOW = 4096  # where the file does not name it; null: there is none
_FULL, _SLIDING = "full_attention", "sliding_attention"


def read_window(config: JsonFile, architecture: str) -> int | None:
    """Tokens that each sees, or None for all. Raises ConfigError."""
    layers = config.integer("num_hidden_layers")
    if architecture == MISTRAL:
        window = config.integer("sliding_window", None)
        if "sliding_window" not in config.data:
            window = _MISTRAL_WINDOW
    elif architecture == QWEN2:
        window = _of_qwen2(config, layers)
    else:
        config.only("use_sliding_window", False)
        window = None
    _check_layer_types(config, layers, _FULL if window is None else _SLIDING)
    return window


def _of_qwen2(config: JsonFile, layers: int) -> int | None:
    """The first max_window_layers layers see all, and those behind them a window."""
    if not config.boolean("use_sliding_window", False):
        return None
    full = config.integer("max_window_layers", 28, least=0)
    if full >= layers:
        return None
    if full:
        config.refuse(
            "max_window_layers",
            f"supported with use_sliding_window: 0, or num_hidden_layers = {layers}: layers of "
            "both kinds in one model are not",
        )
    return config.integer("sliding_window", 4096)


def _check_layer_types(config: JsonFile, layers: int, kind: str) -> None:
    types = config.data.get("layer_types")
    if types is None:
        return
    if not isinstance(types, list) or any(one != kind for one in types):
        config.refuse("layer_types", f'supported: "{kind}" in every layer')
    if len(types) != layers:
        config.refuse("layer_types", f"must name {layers} layers")

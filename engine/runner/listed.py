"""Lists of what engines of published models launch, made before for some GPUs.

Invariant: a list only says what can be compiled before it is known what an engine launches. What a
list lacks is compiled all the same; what it has in vain costs time alone. `launches/` holds a file
for each GPU (tools/list_launches.py writes them). Needs no torch.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.model.config import Fp8, ModelConfig
from quire.engine.model.load_config import RANDOM_PREFIX
from quire.engine.runner.compile_orders import deciding, shape_of

Launch = list[Any]  # kernel, arguments, options by name: as in quire.kernels.launch_list

MODELS = ("0.6B", "1.7B", "4B", "8B", "14B", "32B", "8B-fp8", "30B-A3B", "30B-A3B-fp8")
FOLDER = Path(__file__).with_name("launches")
_HARDLY_DECIDE = {  # kernels; `quantization` is in the model's configuration
    "model",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "quantization",
}


def model_of(config: EngineConfig) -> str:
    """The listed model whose kernels an engine launches; nothing where no list has them."""
    usual = config.exact != "on" and config.dtype in ("auto", "bfloat16")
    if not usual or _options(config) != _options(EngineConfig()):
        return ""
    try:
        shape = _shape(config)
    except (ConfigError, OSError):  # a Hub's id that is not on this machine, for instance
        return ""
    named = {name: EngineConfig(model=f"{RANDOM_PREFIX}{name}") for name in MODELS}
    return next((name for name, of_it in named.items() if _shape(of_it) == shape), "")


def _options(config: EngineConfig) -> dict[str, Any]:
    return {name: value for name, value in deciding(config).items() if name not in _HARDLY_DECIDE}


def _shape(config: EngineConfig) -> ModelConfig:
    """As `shape_of`, and without what hardly decides kernels: positions, and whose FP8 it is."""
    shape = shape_of(config)
    return dataclasses.replace(
        shape,
        initializer_range=0.0,
        max_position_embeddings=1,
        rope_theta=0.0,
        rope_scaling=None,
        fp8=shape.fp8 and Fp8(),
    )


def read(model: str, card: str) -> list[Launch]:
    """The launches of a model on a GPU; none where there is no list. card: its name."""
    try:
        groups = json.loads(_file(card).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [
        [group["kernel"], arguments, dict(zip(group["options"], values, strict=True))]
        for group in groups
        for models, arguments, values in group["launches"]
        if model in models
    ]


def write(card: str, launches: Mapping[str, Sequence[Launch]]) -> None:
    """The list of a GPU. launches: of each model. A launch of several is one line."""
    models: dict[str, list[str]] = {}
    for model, some in launches.items():
        for launch in some:
            models.setdefault(json.dumps(launch), []).append(model)
    lines: dict[tuple[str, ...], list[str]] = {}
    for text in sorted(models):
        kernel, arguments, options = json.loads(text)
        line = json.dumps([models[text], arguments, list(options.values())])
        lines.setdefault((kernel, *options), []).append(line)
    groups = [
        f'{{"kernel": {json.dumps(kernel)},\n"options": {json.dumps(options)},\n"launches": [\n'
        + ",\n".join(some)
        + "\n]}"
        for (kernel, *options), some in lines.items()
    ]
    _file(card).write_text("[\n" + ",\n".join(groups) + "\n]\n", encoding="utf-8")


def _file(card: str) -> Path:
    """Cards of one chip have one: "NVIDIA H100 80GB HBM3" and "NVIDIA H100 PCIe"."""
    return FOLDER / f"{'-'.join(card.lower().split()[:2])}.json"

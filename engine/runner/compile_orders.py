"""What an engine and the processes that compile its kernels tell one another, as lines of JSON."""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from quire.engine.config import EngineConfig
from quire.engine.model.config import GenerationDefaults, ModelConfig
from quire.engine.model.load_config import model_config

_FAMILY = 16  # hex digits
DECIDING = (  # options from which kernels follow, beside those that the orders have resolved
    "model",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "block_size",
    "kv_cache_dtype",
    "quantization",
    "tensor_parallel_size",
)


def deciding(config: EngineConfig) -> dict[str, Any]:
    """Those options alone: whoever compiles knows no other, so none can change what is compiled."""
    options = {name: getattr(config, name) for name in DECIDING}
    return options | {"max_num_batched_tokens": config.step_tokens()}


@dataclass(frozen=True)
class Orders:
    """What is to be compiled. options: an EngineConfig's (`deciding`). dtype: of weights and
    activations ("bfloat16"), and of the cache, if the options say no other. arch: 90 is sm_90;
    shared: bytes of shared memory of a program; card: its name, or nothing (`measured_card`). pdl:
    whether kernels are launched as dependents. cache: the folder where Triton keeps them.
    processes: how many share the work. exact: whether in exact mode."""

    options: dict[str, Any]
    dtype: str
    arch: int
    shared: int
    card: str
    pdl: bool
    cache: str = ""
    processes: int = 1
    exact: bool = False

    @classmethod
    def read(cls, line: str) -> Self:
        """What `written` has written."""
        return cls(**json.loads(line))

    def written(self) -> str:
        """One line, without its end."""
        return json.dumps(dataclasses.asdict(self))

    @property
    def config(self) -> EngineConfig:
        return EngineConfig(**self.options)

    @property
    def shape(self) -> ModelConfig:
        """Of the model (`shape_of`)."""
        return shape_of(self.config)

    def key(self, versions: str) -> str:
        """Names the work, whoever does it, and wherever the model is; begins with its `family`.
        versions: of whatever else decides the code. Raises ConfigError."""
        options = self.options | {"model": repr(self.shape)}
        whole = dataclasses.replace(self, options=options, cache="", processes=1).written()
        return f"{family(self.config, versions)}-{_digest(versions + whole)}"


def shape_of(config: EngineConfig) -> ModelConfig:
    """The model, but for what decides no kernel: how it is sampled and where it ends, and whether
    the embedding stands in a head's place, for which a checkpoint's weights are asked. Raises
    ConfigError."""
    return dataclasses.replace(
        model_config(config),
        eos_token_ids=(),
        generation=GenerationDefaults(),
        embeds_only=False,
        tie_word_embeddings=False,
    )


def family(config: EngineConfig, versions: str) -> str:
    """Names what of the work is known before the card is, and the data types that follow from it.
    Raises ConfigError."""
    options = deciding(config) | {"model": repr(shape_of(config))}
    return _digest(versions + json.dumps(options))[:_FAMILY]


def versions() -> str:
    """Of all that decides a kernel's code beside the orders: packages, and the sources here; and
    of Python, for which launchers are built."""
    digest = hashlib.sha256()
    engine = Path(__file__).parents[1]
    for root in (engine.with_name("kernels"), engine):
        for file in sorted([*root.rglob("*.py"), *root.rglob("*.json")]):
            digest.update(file.read_bytes())
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "triton")]
    return " ".join([*packages, f"{sysconfig.get_config_var('SOABI')}", digest.hexdigest()])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Found:
    """A kernel that an engine launches. name: as a launch asks for it (`offline.name_of`)."""

    found: str


@dataclass(frozen=True)
class Counted:
    """All that are launched have been told, so many."""

    kernels: int


@dataclass(frozen=True)
class Compiled:
    """A kernel that is there, whether launched or not. folder: its place in Triton's cache, with
    its path; name: as in Found."""

    folder: str
    name: str


Word = Found | Counted | Compiled


def written(word: Word) -> str:
    """One line, without its end."""
    return json.dumps(dataclasses.asdict(word))


def read_word(line: str) -> Word | None:
    """What a line says; None: it is no such word."""
    for kind in (Found, Counted, Compiled):
        with contextlib.suppress(ValueError, TypeError):
            return kind(**json.loads(line))
    return None

"""What holds of each architecture that is read: it is compared with transformers, told of in the
documents, and a key that its file leaves out means what it means to transformers.

They would catch an architecture that was added in some places only (docs/extending.md names them
all), and one whose files are read by another's rules.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import hf_models, small_engine
from support.single_prompt import batch_for, new_cache
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from quire.engine.errors import ConfigError
from quire.engine.model.config import GPT2, QWEN3_MOE, ModelConfig
from quire.engine.model.hf_families import FAMILIES
from quire.engine.model.layers.parallel import World
from quire.engine.model.registry import build_model
from quire.kernels import reference

ROOT = Path(__file__).resolve().parents[3]
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
OF_GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
OF_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def sizes(name: str) -> dict[str, Any]:
    """Keys without which a file of this architecture is refused, and how large it is."""
    return OF_GPT2 if name == GPT2 else SIZES | (OF_EXPERTS if name == QWEN3_MOE else {})


def read(path: Path, name: str, **keys: Any) -> ModelConfig:
    """What is read of a file with these keys."""
    said = {"architectures": [name], "model_type": FAMILIES[name].model_type, **keys}
    (path / "config.json").write_text(json.dumps(said))
    return ModelConfig.from_directory(path)


def theirs(name: str, **keys: Any) -> Any:
    return AutoConfig.for_model(FAMILIES[name].model_type, **keys)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_compared_with_transformers(name: str) -> None:
    compared = {
        one.family.model_type for all_ in (hf_models.SHAPES, *hf_models.OTHERS) for one in all_
    }
    assert FAMILIES[name].model_type in compared, "tests/shared/support/hf_models.py: OTHERS"


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_equal_to_itself_in_the_engine(name: str) -> None:
    """Cached, chunked, batched, preempted: tests/engine/test_equivalences.py."""
    models = [small_engine.model_config(), *small_engine.FAMILIES.values()]
    assert name in {one.architecture for one in models}, "tests/shared/support/small_engine.py"


@pytest.mark.parametrize("name", FAMILIES)
def test_documents_name_it(name: str) -> None:
    assert f"| `{name}` |" in (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def silent(name: str) -> Iterator[tuple[str, str]]:
    """Keys that a file may leave out, and what we call them."""
    yield "initializer_range", "initializer_range"
    yield "tie_word_embeddings", "tie_word_embeddings"
    yield ("layer_norm_epsilon" if name == GPT2 else "rms_norm_eps"), "rms_norm_eps"
    if name != GPT2:
        yield "sliding_window", "sliding_window"


@pytest.mark.parametrize("name", FAMILIES)
def test_silence_means_what_it_means_to_transformers(name: str, tmp_path: Path) -> None:
    """The number of heads of keys, too, or a file without it is refused."""
    ours, their = read(tmp_path, name, **sizes(name)), theirs(name, **sizes(name))
    for key, field in silent(name):
        assert getattr(ours, field) == getattr(their, key, None), key
    if name != GPT2:
        assert ours.rope_theta == their.rope_parameters["rope_theta"]
        heads = getattr(their, "head_dim", None) or their.hidden_size // their.num_attention_heads
        assert ours.head_dim == heads
    less = {key: value for key, value in sizes(name).items() if key != "num_key_value_heads"}
    try:
        assert read(tmp_path, name, **less).num_kv_heads == theirs(name, **less).num_attention_heads
    except ConfigError as refusal:
        assert "num_key_value_heads is missing" in str(refusal)


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_a_window_is_one_where_transformers_has_one(name: str, tmp_path: Path) -> None:
    """The key alone. Of an architecture that computes it, it may not be passed over."""
    tokens, logits = torch.arange(1, 17)[None], []
    for window in (None, 3):
        torch.manual_seed(0)
        config = theirs(name, **sizes(name), sliding_window=window)
        logits.append(AutoModelForCausalLM.from_config(config).eval()(tokens).logits)
    computed = not torch.equal(*logits)
    found = read(tmp_path, name, **sizes(name), sliding_window=3).sliding_window
    assert found == (3 if computed else None), "WindowKeys, in engine/model/hf_families.py"


# ------------------------------------------------------------ what attention reads early


class Begun(Exception):
    """The layers have begun: an operation was called whose kernel may be a dependent one."""


class EndedByTheFirst:
    """Operations of which none is made."""

    def __getattr__(self, name: str) -> Any:
        getattr(reference, name)

        def begin(*_: Any, **__: Any) -> None:
            raise Begun

        return begin


class Alike:
    """Ranks that all have the same."""

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x, x])


class Noted(TorchDispatchMode):
    """torch's own operations, whose launches are ordinary."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_ordinary_launch_stands_before_its_layers(name: str, ranks: int, tmp_path: Path) -> None:
    """Without it their kernels would read positions, tables and contexts before they are made."""
    world = World(0, ranks, Alike() if ranks > 1 else None)
    made: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu"), "world": world}
    config = read(tmp_path, name, **sizes(name))
    model = build_model(config, EndedByTheFirst(), **made)
    for tokens in ([1], [1, 2, 3]):
        cache = new_cache(model, 4)
        batch = batch_for(tokens, 0, cache)
        with torch.inference_mode(), pytest.raises(Begun), Noted() as noted:
            model.forward(batch, cache)
        assert "aten.index.Tensor" in noted.names

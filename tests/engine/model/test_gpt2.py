"""GPT-2's configurations and checkpoints: as the Hub has them, as transformers writes them, and
what of them is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import hf_models
from support.single_prompt import all_logits, batch_for, new_cache
from torch import Tensor

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, ModelError
from quire.engine.model.base import CausalModel
from quire.engine.model.config import ModelConfig
from quire.engine.model.load_config import resolve_max_model_len
from quire.engine.model.registry import build_model
from quire.engine.startup import sizing
from quire.engine.weights.loader import check_checkpoint, load_checkpoint
from quire.kernels import reference

# As openai-community/gpt2 has it on the Hub, but for what has no say in what is computed.
HUB: dict[str, Any] = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "vocab_size": 50257,
}


def read(path: Path, config: dict[str, Any]) -> ModelConfig:
    (path / "config.json").write_text(json.dumps(config))
    return ModelConfig.from_directory(path)


def test_the_hub_s_gpt2_is_the_named_shape(tmp_path: Path) -> None:
    small = read(tmp_path, HUB)
    assert small == ModelConfig.named_shape("gpt2")
    assert small.num_parameters == 124_439_808
    assert ModelConfig.named_shape("gpt2-xl").num_parameters == 1_557_611_200
    assert resolve_max_model_len(EngineConfig(model=str(tmp_path)), small) == 1024
    with pytest.raises(ConfigError, match="max_model_len = 1025: the model has 1024 positions"):
        resolve_max_model_len(EngineConfig(model=str(tmp_path), max_model_len=1025), small)


def test_a_file_that_says_little_means_transformers_defaults(tmp_path: Path) -> None:
    few = {key: HUB[key] for key in ("architectures", "model_type")} | {"vocab_size": 50257}
    assert read(tmp_path, few) == ModelConfig.named_shape("gpt2")
    common = {"hidden_size": 768, "num_hidden_layers": 12, "max_position_embeddings": 1024}
    assert read(tmp_path, HUB | common) == ModelConfig.named_shape("gpt2")
    assert read(tmp_path, few | {"eos_token_id": None}).eos_token_ids == ()


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"activation_function": "relu"}, 'activation_function = "relu": supported: "gelu_new", "ge'),
    ({"activation_function": "gelu"}, 'activation_function = "gelu": supported: "gelu_new", "ge'),
    ({"scale_attn_weights": False}, "scale_attn_weights = false: supported: true"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = true: suppor"),
    ({"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn = true: supported: false"),
    ({"add_cross_attention": True}, "add_cross_attention = true: supported: false"),
    ({"n_embd": 770}, "n_embd = 770: must be n_head = 12 times at most 1024"),
    ({"n_positions": 0}, "n_positions = 0: must be an integer of at least 1"),
    ({"n_inner": -4}, "n_inner = -4: must be an integer of at least 1"),
    ({"layer_norm_epsilon": 0}, "layer_norm_epsilon = 0: must be a number above 0"),
    ({"hidden_size": 1024}, "hidden_size = 1024: contradicts n_embd = 768"),
    ({"rope_theta": 1e4}, "rope_theta = 10000.0: is not supported"),
    ({"num_key_value_heads": 4}, "num_key_value_heads = 4: is not supported"),
    ({"model_type": "gpt_bigcode"}, 'model_type = "gpt_bigcode": supported: "gpt2"'),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_variants_are_refused_by_name(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, HUB | changes)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {words}")


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_quantized_weights_are_refused_by_name(kind: str) -> None:
    config = EngineConfig(model="random:gpt2", quantization=kind, device="cpu")
    shape = ModelConfig.named_shape("gpt2-fp8" if kind == "fp8" else "gpt2")
    with pytest.raises(ConfigError, match=f"quantization = {kind}: not supported for GPT2LMHead"):
        sizing.plan(config, shape)


# ---------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gpt2")
    hf_models.save(hf_models.GPT2_SHAPES[0], directory)
    return directory


def outline(directory: Path, device: str = "meta") -> CausalModel:
    config = ModelConfig.from_directory(directory)
    return build_model(config, reference, dtype=torch.float32, device=torch.device(device))


def logits(directory: Path) -> Tensor:
    model = outline(directory, "cpu")
    load_checkpoint(model, directory)
    with torch.inference_mode():
        return all_logits(model, [5, 7, 11, 13])


def changed(written: Path, to: Path, change: Any) -> Path:
    """A copy of the checkpoint, with its tensors changed."""
    tensors = load_file(written / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors")
    (to / "config.json").write_bytes((written / "config.json").read_bytes())
    return to


def as_on_the_hub(tensors: dict[str, Tensor]) -> None:
    """Without the names' beginning, and with the masks that files of the first years keep."""
    for name in list(tensors):
        tensors[name.removeprefix("transformer.")] = tensors.pop(name)
    for layer in range(3):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)


def test_the_names_and_masks_of_old_files_are_read(written: Path, tmp_path: Path) -> None:
    assert torch.equal(logits(changed(written, tmp_path, as_on_the_hub)), logits(written))


C_ATTN = "transformer.h.1.attn.c_attn.weight"
WTE = "transformer.wte.weight"
BAD: list[tuple[Any, str]] = [
    (lambda t: t.pop("transformer.h.2.mlp.c_fc.bias"), "transformer.h.2.mlp.c_fc.bias is missing"),
    (lambda t: t.pop("transformer.wpe.weight"), "transformer.wpe.weight is missing"),
    (
        lambda t: t.update({C_ATTN: t[C_ATTN].t().contiguous()}),
        rf"{C_ATTN} has the shape \[384, 128\], the configuration asks for \[128, 384\]",
    ),
    (
        lambda t: t.update({"transformer.h.9.attn.c_attn.weight": t[C_ATTN].clone()}),
        "transformer.h.9.attn.c_attn.weight is not a weight of the model",
    ),
    (lambda t: t.update({C_ATTN: t[C_ATTN].byte()}), f"{C_ATTN}: dtype U8 is not supported"),
    (
        lambda t: t.update({"lm_head.weight": t[WTE].half()}),
        f"lm_head.weight differs from {WTE}, yet tie_word_embeddings is true",
    ),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[words[:40] for _, words in BAD])
def test_unsound_checkpoints_are_refused_before_memory_is_taken(
    change: Any, words: str, written: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=words):
        check_checkpoint(outline(written), changed(written, tmp_path, change))


def test_a_tied_head_that_is_stored_again_is_read_if_it_is_the_same(
    written: Path, tmp_path: Path
) -> None:
    def again(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors[WTE].clone()

    def otherwise(tensors: dict[str, Tensor]) -> None:
        again(tensors)
        tensors["lm_head.weight"][-1, -1] += 1

    assert torch.equal(logits(changed(written, tmp_path, again)), logits(written))
    with pytest.raises(ModelError, match=r"lm_head\.weight differs from transformer\.wte\.weight"):
        logits(changed(written, tmp_path, otherwise))


def test_a_number_that_is_none_is_told_with_its_stored_rows(written: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[C_ATTN][3, 5] = torch.nan

    with pytest.raises(ModelError, match=rf"{C_ATTN}: 1 numbers in rows 0 to 127 are not finite"):
        logits(changed(written, tmp_path, spoil))


@torch.inference_mode()
def test_states_are_the_last_hidden_states_of_transformers(written: Path) -> None:
    theirs = hf_models.load(written, torch.float32)
    tokens = [5, 7, 11, 13]
    expected = theirs(torch.tensor([tokens]), output_hidden_states=True).hidden_states[-1][0]
    model = outline(written, "cpu")
    load_checkpoint(model, written)
    kv = new_cache(model, len(tokens))
    states = model.states(model.forward(batch_for(tokens, 0, kv), kv))
    assert states.dtype == torch.float32
    assert (states - expected).abs().max() <= 1e-5 * expected.abs().max()

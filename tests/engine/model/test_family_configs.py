"""Configurations of each family beside Qwen3: as the Hub has them, and what of them is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.hub_configs import LLAMA31, QWEN25, read

from quire.engine.errors import ConfigError
from quire.engine.model.config import Fp8, ModelConfig
from quire.engine.model.registry import build_model
from quire.kernels import reference

QWEN25_GENERATION = {
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
}


MOE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "decoder_sparse_step": 1,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


MOE_GENERATION = {
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
}


LLAMA31_GENERATION = {
    "do_sample": True,
    "eos_token_id": [128001, 128008, 128009],
    "temperature": 0.6,
    "top_p": 0.9,
}


def test_other_families_of_the_hub_are_their_named_shapes(tmp_path: Path) -> None:
    small = ModelConfig.named_shape("qwen2.5-0.5B")
    assert read(tmp_path, QWEN25, QWEN25_GENERATION) == small and small.head_dim == 64
    assert read(tmp_path, MOE, MOE_GENERATION) == ModelConfig.named_shape("30B-A3B")
    assert read(tmp_path, LLAMA31, LLAMA31_GENERATION) == ModelConfig.named_shape("llama3.1-8B")


def test_what_a_llama_says_nothing_of(tmp_path: Path) -> None:
    """As in Llama 2: no heads of keys, no dimensions of heads, no scaling."""
    absent = ("num_key_value_heads", "rope_scaling", "rope_theta")
    config = read(tmp_path, {k: v for k, v in LLAMA31.items() if k not in absent})
    assert (config.num_kv_heads, config.head_dim) == (32, 128)
    assert (config.rope_theta, config.rope_scaling) == (10_000.0, None)


def test_which_layers_have_experts(tmp_path: Path) -> None:
    """Every second one, but for the last; the same in transformers 5's own name for their count."""
    sparse = {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [5]}
    renamed = {k: v for k, v in MOE.items() if k != "num_experts"} | {"num_local_experts": 128}
    for config in (MOE, renamed):
        model = read(tmp_path, config | sparse)
        assert [model.experts_of(layer) is not None for layer in range(6)] == [
            *(False, True, False, True, False, False)
        ]
        assert model.experts is not None and model.experts.count == 128


LLAMA3_ROPE = LLAMA31["rope_scaling"]


REFUSED_OF_OTHERS: list[tuple[dict[str, Any], str]] = [
    (
        QWEN25 | {"use_sliding_window": True, "layer_types": ["full_attention"] * 3},
        'layer_types = ["full_attention", "full_attention", "full_attention"]: must name 24 layers',
    ),
    (
        QWEN25 | {"use_sliding_window": True, "layer_types": ["linear_attention"] * 24},
        "layer_types = [",
    ),
    (
        QWEN25 | {"layer_types": ["full_attention", "sliding_attention"] * 12},
        "layer_types = [",
    ),
    (QWEN25 | {"hidden_size": 900}, "hidden_size = 900: must be num_attention_heads = 14 times"),
    (QWEN25 | {"num_key_value_heads": None}, "num_key_value_heads = null: must be"),
    (QWEN25 | {"num_experts": 4}, "num_experts = 4: is not supported"),
    (MOE | {"num_experts_per_tok": 129}, "num_experts_per_tok = 129: must be at most num_exp"),
    (MOE | {"num_experts": 0}, "num_experts = 0: must be an integer of at least 1"),
    (MOE | {"num_local_experts": 64}, "num_local_experts = 64: contradicts num_experts = 128"),
    (MOE | {"mlp_only_layers": [48]}, "mlp_only_layers = [48]: must be integers from 0 to 47"),
    (MOE | {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size = 8: is not"),
    (MOE | {"output_router_logits": True}, "output_router_logits = true: is not supported"),
    (LLAMA31 | {"attention_bias": True}, "attention_bias = true: supported: false"),
    (LLAMA31 | {"mlp_bias": True}, "mlp_bias = true: is not supported"),
    (
        LLAMA31 | {"rope_scaling": LLAMA3_ROPE | {"low_freq_factor": 4.0}},
        "rope_scaling.high_freq_factor = 4.0: must be above low_freq_factor = 4",
    ),
    (
        LLAMA31 | {"rope_scaling": {k: v for k, v in LLAMA3_ROPE.items() if k != "factor"}},
        "rope_scaling.factor is missing",
    ),
    (
        LLAMA31 | {"rope_scaling": LLAMA3_ROPE | {"beta_fast": 32}},
        "rope_scaling.beta_fast = 32: unknown for llama3",
    ),
]


@pytest.mark.parametrize(("config", "words"), REFUSED_OF_OTHERS, ids=lambda value: str(value)[-50:])
def test_refusals_of_other_families(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, config)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {words}")


QUANTIZED = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}


QUANTIZED |= {"weight_block_size": [128, 128], "modules_to_not_convert": ["lm_head"]}  # type: ignore[dict-item]


FORMATS: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "awq", "bits": 4}, '.quant_method = "awq": AWQ is not supported; supported'),
    ({"quant_method": "gptq"}, '.quant_method = "gptq": GPTQ is not supported; supported: float32'),
    (
        {"quant_method": "modelopt"},
        '.quant_method = "modelopt": ModelOpt (NVFP4 and others)',
    ),
    (
        {"quant_method": "compressed-tensors"},
        '.quant_method = "compressed-tensors": compre',
    ),
    (
        {"quant_method": "bitsandbytes"},
        '.quant_method = "bitsandbytes": bitsandbytes is no',
    ),
    ({"quant_method": "new"}, '.quant_method = "new": this format is not supported; supported: '),
    ({"bits": 4}, ' = {"bits": 4}: has no quant_method; supported: '),
    (QUANTIZED | {"activation_scheme": "static"}, '.activation_scheme = "static": supported: "dyn'),
    (
        QUANTIZED | {"weight_block_size": [64, 64]},
        ".weight_block_size = [64, 64]: supported: [12",
    ),
    (QUANTIZED | {"weight_block_size": None}, ".weight_block_size = null: supported: [128, 128]"),
    (QUANTIZED | {"fmt": "e5m2"}, '.fmt = "e5m2": supported: "e4m3"'),
    (QUANTIZED | {"scale_fmt": "ue8m0"}, '.scale_fmt = "ue8m0": supported: "float"'),
    (
        QUANTIZED | {"modules_to_not_convert": "lm_head"},
        '.modules_to_not_convert = "lm_head": mu',
    ),
    (QUANTIZED | {"kv_cache_scheme": {}}, ".kv_cache_scheme = {}: unknown for fp8; known: "),
]


@pytest.mark.parametrize(("section", "words"), FORMATS, ids=lambda value: str(value)[:40])
def test_formats_are_refused_by_name(section: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, QWEN25 | {"quantization_config": section})
    assert f"config.json: quantization_config{words}" in str(caught.value)


def test_formats_that_no_configuration_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model-q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"model-q4\.gguf: GGUF is not supported; supported: fl"):
        ModelConfig.from_directory(tmp_path)
    (tmp_path / "hf_quant_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"hf_quant_config\.json: ModelOpt \(NVFP4"):
        read(tmp_path, QWEN25)


def test_fp8_of_the_hub_is_read(tmp_path: Path) -> None:
    model = read(tmp_path, MOE | {"quantization_config": QUANTIZED})
    assert model.fp8 == Fp8(("lm_head",))
    assert read(tmp_path, MOE | {"quantization_config": None}).fp8 is None


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ("Qwen2_5_VLForConditionalGeneration", "vision and audio: not supported"),
        ("Qwen3VLMoeForConditionalGeneration", "vision and audio: not supported"),
        ("MllamaForConditionalGeneration", "vision and audio: not supported"),
        ("Qwen3NextForCausalLM", "hybrids with gated delta-net: not supported"),
        ("Qwen3_5MoeForCausalLM", "hybrids with gated delta-net: not supported"),
        ("MixtralForCausalLM", "this kind of experts: not supported"),
        ("Gemma3ForCausalLM", "not supported"),
    ],
)
def test_other_architectures_are_refused_by_name(
    architecture: str, words: str, tmp_path: Path
) -> None:
    supported = "supported: Qwen3ForCausalLM, Qwen3MoeForCausalLM, Qwen2ForCausalLM, Llama"
    with pytest.raises(ConfigError, match=rf'"{architecture}"\]: {words}; {supported}'):
        read(tmp_path, QWEN25 | {"architectures": [architecture]})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("0.6B", 596_049_920),
        ("8B", 8_190_735_360),
        ("30B-A3B", 30_532_122_624),
        ("qwen2.5-0.5B", 494_032_768),
        ("qwen2.5-7B", 7_615_616_512),
        ("llama3.2-1B", 1_235_814_400),
        ("llama3.1-8B", 8_030_261_248),
        ("phi4", 14_659_507_200),
    ],
)
def test_parameters_are_those_of_the_published_checkpoint(name: str, parameters: int) -> None:
    config = ModelConfig.named_shape(name)
    assert config.num_parameters == parameters
    model = build_model(config, reference, dtype=torch.bfloat16, device=torch.device("meta"))
    shapes = {one.name: one.shape for one in model.placements()}
    assert config.num_parameters == sum(torch.Size(shape).numel() for shape in shapes.values())

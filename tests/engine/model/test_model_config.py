"""Configurations: both key styles, what is refused and how, sizes, fingerprints."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from quire.engine.errors import ConfigError
from quire.engine.model.config import GenerationDefaults, ModelConfig, RopeScaling
from quire.engine.model.registry import build_model
from quire.kernels import reference

# As Qwen/Qwen3-0.6B has it on the Hub: keys of transformers 4.
HUB: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}
HUB_GENERATION = {
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.95,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def read(
    path: Path, config: dict[str, Any] | str, generation: dict[str, Any] | None = None
) -> ModelConfig:
    text = config if isinstance(config, str) else json.dumps(config)
    (path / "config.json").write_text(text)
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return ModelConfig.from_directory(path)


def test_the_hub_s_configuration_is_the_named_shape(tmp_path: Path) -> None:
    assert read(tmp_path, HUB, HUB_GENERATION) == ModelConfig.named_shape("0.6B")


def test_both_key_styles_say_the_same(tmp_path: Path) -> None:
    old = HUB | {"rope_scaling": {"type": "yarn"} | {k: YARN[k] for k in list(YARN)[1:]}}
    new = {k: v for k, v in HUB.items() if k not in ("rope_theta", "rope_scaling", "torch_dtype")}
    new |= {"rope_parameters": YARN | {"rope_theta": 1e6}, "dtype": "bfloat16"}
    config = read(tmp_path, old)
    assert config == read(tmp_path, new)
    assert config.rope_theta == 1e6 and config.stored_dtype == "bfloat16"
    assert config.max_position_embeddings == 131_072
    assert config.rope_scaling == RopeScaling(4.0, 32768, pytest.approx(1.1386294))


def test_both_key_styles_at_once_must_agree(tmp_path: Path) -> None:
    same = HUB | {"rope_scaling": YARN, "rope_parameters": YARN | {"rope_theta": 1e6}}
    assert read(tmp_path, same).rope_scaling is not None
    with pytest.raises(ConfigError, match=r"rope_scaling .* contradicts rope_parameters"):
        read(tmp_path, same | {"rope_scaling": YARN | {"factor": 2.0}})


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["GPT9"]}, 'architectures = ["GPT9"]: not supported; supported: Qwen3'),
    ({"architectures": ["LlamaForCausalLM"]}, 'model_type = "qwen3": supported: "llama"'),
    ({"architectures": None}, "architectures = null: must be a list"),
    ({"model_type": "llama"}, 'model_type = "llama": supported: "qwen3"'),
    ({"attention_bias": True}, "attention_bias = true: supported: false"),
    ({"use_sliding_window": True}, "use_sliding_window = true"),
    ({"layer_types": ["sliding_attention"]}, "layer_types"),
    ({"hidden_act": "gelu"}, 'hidden_act = "gelu": supported: "silu"'),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"torch_dtype": "float8_e4m3fn"}, 'torch_dtype = "float8_e4m3fn": supported: "float32"'),
    ({"vocab_size": "many"}, 'vocab_size = "many": must be an integer of at least 1'),
    ({"hidden_size": 0}, "hidden_size = 0: must be an integer of at least 1"),
    ({"num_hidden_layers": True}, "num_hidden_layers = true"),
    ({"num_key_value_heads": 5}, "num_attention_heads = 16: must be a multiple of"),
    ({"head_dim": 127}, "head_dim = 127: must be even"),
    ({"rms_norm_eps": -1}, "rms_norm_eps = -1: must be a number above 0"),
    ({"rms_norm_eps": "1e-6"}, 'rms_norm_eps = "1e-6"'),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings = 1: must be true or false"),
    ({"eos_token_id": 151936}, "eos_token_id = 151936: must be integers from 0 to 151935"),
    ({"eos_token_id": [1, "2"]}, 'eos_token_id = [1, "2"]'),
    ({"rope_theta": 0}, "rope_theta = 0: must be a number above 1"),
    ({"rope_scaling": "yarn"}, 'rope_scaling = "yarn": must be an object'),
    (
        {"rope_scaling": {"rope_type": "longrope"}},
        'rope_scaling.rope_type = "longrope": supported:',
    ),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, 'rope_scaling.type = "linear"'),
    ({"rope_scaling": YARN | {"factor": "4"}}, 'rope_scaling.factor = "4"'),
    ({"rope_scaling": YARN | {"mscale2": 1}}, "rope_scaling.mscale2 = 1: unknown for yarn"),
    ({"rope_scaling": YARN | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_refusals_name_file_key_and_value(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, HUB | change)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "config.json")) and words in message
    assert message.count("config.json") == 1 and "\n" not in message


@pytest.mark.parametrize(
    "key",
    [
        "architectures",
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "max_position_embeddings",
    ],
)
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"config.json: {key} is missing"):
        read(tmp_path, {k: v for k, v in HUB.items() if k != key})


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000, '"\\ud800'])
def test_what_is_not_an_object_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json: "):
        read(tmp_path, text)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere: no such directory"):
        ModelConfig.from_directory(tmp_path / "nowhere")
    with pytest.raises(
        ConfigError, match=r"config\.json: no such file, so .+ is not the directory of a model"
    ):
        ModelConfig.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, GenerationDefaults()),
        ({"temperature": 0.7}, GenerationDefaults(temperature=0.7)),
        ({"do_sample": False, "temperature": 0.7}, GenerationDefaults(temperature=0.0)),
        ({"do_sample": True, "top_k": 5}, GenerationDefaults(temperature=1.0, top_k=5)),
        (
            {"min_p": 0.1, "repetition_penalty": 1.1},
            GenerationDefaults(min_p=0.1, repetition_penalty=1.1),
        ),
    ],
)
def test_sampling_defaults(
    generation: dict[str, Any], expected: GenerationDefaults, tmp_path: Path
) -> None:
    assert read(tmp_path, HUB, generation).generation == expected


@pytest.mark.parametrize(
    "generation",
    [{"temperature": -1}, {"top_p": 0}, {"top_k": 2.5}, {"min_p": 2}, {"do_sample": "no"}],
)
def test_bad_sampling_defaults_are_refused(generation: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"generation_config\.json: {next(iter(generation))}"):
        read(tmp_path, HUB, generation)


def test_end_tokens_are_the_union_of_both_files(tmp_path: Path) -> None:
    assert read(tmp_path, HUB | {"eos_token_id": [7, 5]}, {"eos_token_id": [5, 9]}).eos_token_ids
    assert ModelConfig.from_directory(tmp_path).eos_token_ids == (7, 5, 9)
    assert read(tmp_path, HUB | {"eos_token_id": None}, {"eos_token_id": 3}).eos_token_ids == (3,)
    assert read(tmp_path, HUB | {"eos_token_id": None}, {}).eos_token_ids == ()


# ---------------------------------------------------------------- sizes and names


@pytest.mark.parametrize(
    ("name", "gigabytes_a_step", "kv_bytes"),
    [
        ("0.6B", 1.19, 114_688),
        ("1.7B", 3.44, 114_688),
        ("4B", 8.05, 147_456),
        ("8B", 15.14, 147_456),
        ("14B", 27.98, 163_840),
        ("32B", 63.97, 262_144),
    ],
)
def test_sizes_of_the_published_models(name: str, gigabytes_a_step: float, kv_bytes: int) -> None:
    config = ModelConfig.named_shape(name)
    assert config.kv_bytes_per_token(torch.bfloat16) == kv_bytes
    weights = config.weight_bytes(torch.bfloat16)
    if not config.tie_word_embeddings:  # a step reads a few rows of the embedding, not all
        weights -= 2 * config.vocab_size * config.hidden_size
    assert weights / 1e9 == pytest.approx(gigabytes_a_step, abs=0.01)


def test_an_unknown_shape_or_architecture_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'7B': unknown; known: 0\.6B"):
        ModelConfig.named_shape("7B")
    config = dataclasses.replace(ModelConfig.named_shape("tiny"), architecture="GPT9")
    with pytest.raises(ConfigError, match="GPT9: not supported; known: Qwen3ForCausalLM"):
        build_model(config, reference, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head_dim": 80}, "head_dim 80 is not supported: one of 16, 32, 64, 96, 128, 256"),
        ({"num_q_heads": 32, "num_kv_heads": 1}, "32 query heads a kv head are not supported"),
    ],
)
def test_what_the_gpu_s_kernels_cannot_do_is_refused_before_loading(
    changes: dict[str, int], words: str
) -> None:
    config = dataclasses.replace(ModelConfig.named_shape("tiny"), **changes)
    with pytest.raises(ConfigError, match=f"device = cuda: {words}"):
        build_model(config, reference, dtype=torch.bfloat16, device=torch.device("cuda"))
    build_model(config, reference, dtype=torch.bfloat16, device=torch.device("cpu"))


def test_fingerprint_follows_what_changes_the_function() -> None:
    config = ModelConfig.named_shape("tiny")

    def of(weights: str = "w", dtype: torch.dtype = torch.float32, **changes: Any) -> str:
        return dataclasses.replace(config, **changes).fingerprint(weights, dtype)

    scaling = RopeScaling(4.0, 1024, 1.1)
    different = [
        of(),
        of("v"),
        of(dtype=torch.bfloat16),
        of(rms_norm_eps=1e-5),
        of(rope_theta=1e4),
        of(rope_scaling=scaling),
        of(rope_scaling=dataclasses.replace(scaling, truncate=False)),
        of(tie_word_embeddings=True),
        of(num_kv_heads=4),
    ]
    assert len(set(different)) == len(different)
    narrow = config.fingerprint("w", torch.float32, torch.bfloat16)  # keys and values
    assert narrow not in different
    assert config.fingerprint("w", torch.float32, torch.float32) == of()
    same = [of(eos_token_ids=(1,)), of(generation=GenerationDefaults(0.5)), of()]
    assert set(same) == {of()}

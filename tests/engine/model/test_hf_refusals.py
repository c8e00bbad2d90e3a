"""What a configuration asks for and Quire does not compute is refused by file and path."""

import json
from pathlib import Path
from typing import Any

import pytest

from quire.engine.errors import ConfigError
from quire.engine.model.config import GenerationDefaults
from quire.engine.model.hf_config import read_directory

SOUND: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_dropout": 0.0,
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 4096,
    "max_window_layers": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "sliding_window": None,
    "training": "a note",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "vocab_size": 101,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


def write(path: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> None:
    (path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rope_parameters": {"full_attention": YARN}}, "rope_parameters.full_attention = {"),
    ({"rope_scaling": {"sliding_attention": {}}}, "rope_scaling.sliding_attention = {}"),
    ({"rope_parameters": {"factor": 4.0}}, "rope_parameters.factor = 4.0: unknown for default"),
    ({"rope_scaling": YARN | {"short_factor": [1]}}, "rope_scaling.short_factor = [1]"),
    ({"rope_scaling": YARN | {"type": "default"}}, 'rope_scaling.type = "default": contradicts'),
    (
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}},
        "rope_parameters.rope_theta = 1000000.0: contradicts",
    ),
    ({"rope_scaling": YARN | {"factor": 1e6}}, "rope_scaling.factor = 1000000.0: makes"),
    ({"rope_scaling": YARN | {"factor": 10**400}}, "rope_scaling.factor = 1000"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ({"partial_rotary_factor": True}, "partial_rotary_factor = true"),
    ({"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention_config = {"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
    ({"num_experts": 8}, "num_experts = 8"),
    ({"mlp_bias": True}, "mlp_bias = true"),
    ({"is_causal": False}, "is_causal = false"),
    ({"is_causal": None}, "is_causal = null"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder = true"),
    ({"kv_sharing_modes": ["reuse"]}, 'kv_sharing_modes = ["reuse"]'),
    ({"transformers_weights": "other.safetensors"}, "transformers_weights = "),
    ({"configuration_files": ["config.4.0.0.json"]}, "configuration_files = ["),
    ({"min_length": 5}, "min_length = 5"),
    ({"temperature": -1}, "temperature = -1"),
    ({"embedding_multiplier": 12}, "embedding_multiplier = 12"),
    ({"compression_config": {"format": "int"}}, "compression_config = {"),
    ({"layer_types": ["full_attention"]}, 'layer_types = ["full_attention"]: must name 2'),
    ({"dtype": "float16", "torch_dtype": "bfloat16"}, 'torch_dtype = "bfloat16": contradicts'),
    ({"max_position_embeddings": 10**8}, "max_position_embeddings = 100000000: must be"),
    ({"hidden_size": 10**18}, "hidden_size = 1000000000000000000: must be"),
    ({"vocab_size": 10**9}, "vocab_size = 1000000000: must be"),
    ({"num_hidden_layers": 10**6}, "num_hidden_layers = 1000000: must be"),
    ({"intermediate_size": 10**12}, "intermediate_size = 1000000000000: must be"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps = 1000"),
]


def test_a_sound_configuration_is_read(tmp_path: Path) -> None:
    write(tmp_path, SOUND | {"rope_parameters": YARN | {"rope_theta": 1e6}})
    config = read_directory(tmp_path)
    assert config.rope_theta == 1e6
    assert config.rope_scaling is not None and config.rope_scaling.factor == 4.0


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_not_computed_is_refused_by_its_path(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    write(tmp_path, SOUND | change)
    with pytest.raises(ConfigError) as caught:
        read_directory(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: {words}")
    assert len(message) < 700


@pytest.mark.parametrize(
    "generation",
    [
        *({"temperature": -1}, {"eos_token_id": 101}, {"num_beams": 4}, {"min_length": 5}),
        *({"temperature": 1e39}, {"repetition_penalty": 1e39}, {"repetition_penalty": 10.5}),
        {"token_healing": True},
    ],
)
def test_a_fault_of_the_generation_file_is_told_as_its_own(
    generation: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, SOUND, generation)
    with pytest.raises(ConfigError) as caught:
        read_directory(tmp_path)
    expected = f"{tmp_path / 'generation_config.json'}: {next(iter(generation))} = "
    assert str(caught.value).startswith(expected)


def test_a_configuration_tells_of_decoding_where_no_other_file_does(tmp_path: Path) -> None:
    asked = SOUND | {"temperature": 0.5, "top_k": 3, "do_sample": True}
    write(tmp_path, asked)
    read = read_directory(tmp_path).generation
    assert (read.temperature, read.top_k) == (0.5, 3)
    write(tmp_path, asked | {"min_length": 5}, {"top_p": 0.5})
    assert read_directory(tmp_path).generation == GenerationDefaults(top_p=0.5)


def test_an_adapter_beside_the_weights_is_not_left_out(tmp_path: Path) -> None:
    write(tmp_path, SOUND)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"adapter_config\.json: adapters are not supported"):
        read_directory(tmp_path)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    text = json.dumps(SOUND)[:-1] + ', "hidden_size": 128}'
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r'config\.json: .*"hidden_size" stands twice'):
        read_directory(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
        (b"/annex/objects/SHA256E-s9--00.json\n", "git-annex pointer"),
        (b"<!DOCTYPE html><html>", "HTML page"),
        (b"\n<HTML>", "HTML page"),
        (b"", "empty"),
        (b"\0" * 4096, "zero bytes"),
    ],
)
def test_what_stands_instead_of_a_file_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    write(tmp_path, SOUND)
    for name in ("config.json", "generation_config.json"):
        write(tmp_path, SOUND, {})
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=rf"/{name}: .*{words}"):
            read_directory(tmp_path)

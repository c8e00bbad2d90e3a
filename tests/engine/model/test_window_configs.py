"""Families whose layers see a window, and how windows are read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.hub_configs import LLAMA31, QWEN25, read

from quire.engine.errors import ConfigError
from quire.engine.model.config import ModelConfig

MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 32000,
}


PHI4: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 100257,
    "embd_pdrop": 0.0,
    "eos_token_id": 100265,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 17920,
    "max_position_embeddings": 16384,
    "model_type": "phi3",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 10,
    "original_max_position_embeddings": 16384,
    "pad_token_id": 100349,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 250000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 100352,
}


def test_phi4_is_its_named_shape_and_its_kin_are_refused_where_they_differ(tmp_path: Path) -> None:
    assert read(tmp_path, PHI4) == ModelConfig.named_shape("phi4")
    assert read(tmp_path, PHI4 | {"sliding_window": 2047}).sliding_window == 2047
    long = {"type": "longrope", "short_factor": [1.0] * 64, "long_factor": [1.0] * 64}
    for more, words in (
        ({"rope_scaling": long}, "rope_scaling.short_factor|rope_scaling.type"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "is not supported for Phi3ForCausalLM"),
        ({"partial_rotary_factor": 0.75}, "partial_rotary_factor = 0.75"),
    ):
        with pytest.raises(ConfigError, match=words):
            read(tmp_path, PHI4 | more)


def test_windows_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    """Of Mistral null is none, and silence 4096; of Qwen2 the first layers see all."""
    silent = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    windows = {"use_sliding_window": True, "sliding_window": 96}
    told = [
        (MISTRAL | {"sliding_window": 32}, 32),
        (MISTRAL | {"sliding_window": None}, None),
        (silent, 4096),
        (QWEN25 | windows | {"max_window_layers": 0}, 96),
        (QWEN25 | windows | {"max_window_layers": 24}, None),
        (QWEN25 | {"sliding_window": 96}, None),
        (LLAMA31 | {"sliding_window": 96}, None),
    ]
    for config, window in told:
        assert read(tmp_path, config).sliding_window == window
        assert read(tmp_path, config).full_layers == ()
    two_kinds = read(tmp_path, QWEN25 | windows | {"max_window_layers": 3})
    assert (two_kinds.sliding_window, two_kinds.full_layers) == (96, (0, 1, 2))
    types = ["sliding_attention", "full_attention", "sliding_attention"] * 8
    listed = read(tmp_path, QWEN25 | windows | {"max_window_layers": 3, "layer_types": types})
    assert (listed.sliding_window, listed.full_layers) == (96, tuple(range(1, 24, 3)))
    assert (listed.window_of(0), listed.window_of(1), listed.window_layers) == (96, None, 16)
    prints = {one.fingerprint("w", torch.float32) for one in (two_kinds, listed)}
    prints.add(
        read(tmp_path, QWEN25 | windows | {"max_window_layers": 0}).fingerprint("w", torch.float32)
    )
    assert len(prints) == 3
    unknown = QWEN25 | windows | {"layer_types": ["linear_attention"] * 24}
    with pytest.raises(ConfigError, match='supported: "full_attention" or "sliding_attention" in'):
        read(tmp_path, unknown)
    several = MISTRAL | {"layer_types": ["sliding_attention", "full_attention"] * 16}
    with pytest.raises(ConfigError, match=r'layer_types = .*supported: "sliding_attention"'):
        read(tmp_path, several)

"""The Hugging Face directory: writing it and its manifest.

Invariant: `manifest.json` names every other file of the model with its sha256.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from network import Pocket
from rows import Encoder
from safetensors.torch import save_file

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_manifest(directory: Path) -> None:
    """manifest.json: {file: sha256} of the model's files."""
    digests = {
        name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in MODEL_FILES
    }
    _write_json(directory / "manifest.json", digests)


def write_model(model: Pocket, encoder: Encoder, directory: Path, training: str = "") -> None:
    """Weights (bf16) and configurations beside the tokenizer already in `directory`.

    training: how the weights were made; kept in config.json.
    """
    weights = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "model.safetensors").chmod(0o644)
    config = {**model.shape.hugging_face(encoder.im_end, encoder.pad), "training": training}
    _write_json(directory / "config.json", config)
    generation = {
        "do_sample": False,
        "eos_token_id": [encoder.im_end, encoder.pad],
        "pad_token_id": encoder.pad,
    }
    _write_json(directory / "generation_config.json", generation)
    write_manifest(directory)

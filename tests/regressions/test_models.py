"""One test for each defect of sizes, memory and weights that users of comparable systems reported.

What each system got wrong stands in the test's first line; what Quire does instead is asserted. A
test is named after where it was reported.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_engine import model_config
from support.small_engine import run as run_core

from quire.engine.config import EngineConfig
from quire.engine.errors import ConfigError, ModelError, RequestError
from quire.engine.model.config import ModelConfig
from quire.engine.model.registry import build_model
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.runner.graphs import GraphSizes, captured_sizes
from quire.engine.runner.sampler import Needs
from quire.engine.startup.build_engine import build_engine
from quire.engine.weights import loader
from quire.engine.weights.loader import load_checkpoint
from quire.engine.weights.random import fill_random, save_random
from quire.kernels import reference


def _request(key: int, prompt: range, max_tokens: int) -> GenerationRequest:
    return GenerationRequest(key, tuple(prompt), SamplingParams(max_tokens=max_tokens))


@pytest.mark.parametrize("most", (1, 2, 3, 7, 8, 9, 31, 64, 100, 250, 256, 257, 300, 511, 1000))
def test_vllm_57355_max_num_seqs_was_no_captured_size(most: int) -> None:
    """The fullest step was the one that ran without a graph."""
    sizes = captured_sizes(most)
    assert sizes[-1] == most
    assert sizes == sorted(set(sizes))
    keys = GraphSizes(most, 4096, ())
    for rows in range(1, most + 1):
        covering = keys.decode(rows, 100, Needs()).decode_rows
        assert rows <= covering <= most and covering in sizes


@pytest.mark.parametrize("over", (-1, 0, 1))
def test_vllm_10903_longest_length_not_divisible_by_the_block_size(over: int) -> None:
    """The last block was one too few, or its table one column too narrow."""
    longest = 32 + over
    config = EngineConfig(
        model="random:tiny", device="cpu", max_num_seqs=2, max_model_len=longest, num_blocks=12
    )
    specs = [_request(key, range(key, longest - 4), 4 + key) for key in (1, 2)]
    narrow, wide = (
        run_core(build_engine(chosen, lambda _stage, _share: None).core, specs)
        for chosen in (config.replace(block_size=16), config.replace(block_size=64))
    )
    for key in (1, 2):
        assert len(narrow[key, 0].token_ids) == 4 + key
        assert narrow[key, 0].token_ids == wide[key, 0].token_ids
    core = build_engine(config, lambda _stage, _share: None).core
    with pytest.raises(RequestError, match=f"max_model_len = {longest}"):
        core.scheduler.submit(_request(3, range(1, longest - 4), 6))


def test_mini_sglang_56_padding_wasted_by_coarse_captured_sizes() -> None:
    """17% of all rows were padding. Measured for batches of every size up to 256."""
    sizes = captured_sizes(256)
    covering = [next(size for size in sizes if size >= rows) for rows in range(1, 257)]
    waste = sum(size - rows for rows, size in enumerate(covering, 1)) / sum(covering)
    assert waste < 0.06
    assert max(size / rows for rows, size in enumerate(covering, 1) if rows >= 8) < 1.8


# ================================================================ sampling and loading


def test_mini_sglang_88_unseeded_sampling_differs_between_ranks() -> None:
    """Noise came from a generator with a state. It is a function of seed, position and id: batch
    mates, their order and what was drawn before change nothing."""
    torch.manual_seed(0)
    logits = torch.randn(6, 500)
    slots = torch.arange(6, dtype=torch.int32)
    positions = torch.tensor([3, 9, 3, 4, 100, 7], dtype=torch.int32)
    temperature = torch.full((6,), 0.8)
    seeds = torch.tensor([1, 1, 2, 3, 3, -4])
    together = reference.sample(logits, slots, positions, temperature, seeds)
    for order in ([0], [3], [5, 0], [4, 3, 2, 1, 0], [2, 5, 1]):
        torch.manual_seed(order[0])
        drawn = reference.sample(logits[order], slots[order], positions[order], temperature, seeds)
        assert drawn.tolist() == together[order].tolist()
    whole = reference.exponential_noise(seeds, positions, 500)
    assert torch.equal(reference.exponential_noise(seeds, positions, 200), whole[:, :200])
    assert len(set(whole[:, 0].tolist())) == 6


def test_mini_sglang_93_out_of_memory_while_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole checkpoint stood in memory beside the model: here one buffer of fixed size does."""
    config = save_random(model_config(), tmp_path, seed=4)
    monkeypatch.setattr(loader, "CHUNK_BYTES", 4096)
    buffers: list[int] = []
    init = loader._Buffer.__init__

    def count(self: Any, nbytes: int, *, pinned: bool) -> None:
        buffers.append(nbytes)
        init(self, nbytes, pinned=pinned)

    monkeypatch.setattr(loader._Buffer, "__init__", count)
    cpu = torch.device("cpu")
    loaded, made = (
        build_model(config, reference, dtype=torch.float32, device=cpu) for _ in range(2)
    )
    load_checkpoint(loaded, tmp_path)
    fill_random(made, 4)
    assert sum(buffers) <= 4096 < config.weight_bytes(torch.float32) // 50
    for ours, theirs in zip(loaded.placements(), made.placements(), strict=True):
        assert torch.equal(ours.target, theirs.target)


def _rewrite(directory: Path, change: Any) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def _load(directory: Path) -> None:
    config = ModelConfig.from_directory(directory)
    cpu = torch.device("cpu")
    load_checkpoint(build_model(config, reference, dtype=torch.float32, device=cpu), directory)


@pytest.mark.parametrize(
    ("change", "named"),
    (
        (lambda t: t.pop("model.norm.weight"), r"model\.norm\.weight is missing"),
        (lambda t: t.update(extra=torch.zeros(2)), "extra is not a weight of the model"),
        (
            lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}),
            "lm_head.weight differs from model.embed_tokens.weight",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(7)}),
            r"model\.norm\.weight has the shape \[7\]",
        ),
    ),
)
def test_nano_vllm_69_wrong_weights_gave_garbage(tmp_path: Path, change: Any, named: str) -> None:
    """A missing or unexpected weight was passed over in silence, and nonsense was generated."""
    save_random(model_config(), tmp_path)
    _load(tmp_path)
    _rewrite(tmp_path, change)
    with pytest.raises(ModelError, match=named):
        _load(tmp_path)


def test_vllm_6758_tied_head_stored_twice(tmp_path: Path) -> None:
    """It is taken where it is the same; another kind of model, or no model at all, is refused."""
    save_random(model_config(), tmp_path)
    _rewrite(
        tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    )
    _load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"architectures": ["MambaForCausalLM"], "model_type": "mamba"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="amba"):
        _load(tmp_path)
    with pytest.raises(ConfigError, match="nowhere"):
        ModelConfig.from_directory(tmp_path / "nowhere")


# ================================================================ text and protocol

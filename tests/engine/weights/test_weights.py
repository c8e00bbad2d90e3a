"""Weights: right to the bit however they are stored, refused by name where they are not right."""

import itertools
import json
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.fp8_checkpoints import change_config
from support.tiny_checkpoint import CONFIG, Change, change, write
from torch import Tensor

from quire.engine.errors import ModelError
from quire.engine.model.base import CausalModel
from quire.engine.model.config import ModelConfig
from quire.engine.model.registry import build_model
from quire.engine.weights import loader
from quire.engine.weights.checkpoint import Checkpoint
from quire.engine.weights.loader import load_checkpoint
from quire.engine.weights.random import fill_random, hf_config, hf_generation, save_random
from quire.engine.weights.safetensors_file import StoredTensor, read_header, read_into
from quire.kernels import reference

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Q, K, V = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkv")
DOWN = "model.layers.0.mlp.down_proj.weight"


def build(directory: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> CausalModel:
    config = ModelConfig.from_directory(directory)
    return build_model(config, reference, dtype=dtype, device=torch.device(device))


def load(directory: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> CausalModel:
    model = build(directory, dtype, device)
    load_checkpoint(model, directory)
    return model


def held(model: CausalModel) -> dict[str, Tensor]:
    """What the parameters hold, by the checkpoint's names."""
    return {placement.name: placement.target for placement in model.placements()}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """One file, fp32, norms random as well."""
    path = tmp_path / "model"

    def vary_norms(tensors: dict[str, Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        for tensor in tensors.values():
            if tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5, generator=generator)

    write(path, vary_norms)
    return path


# ---------------------------------------------------------------- what is loaded


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("computed", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [loader.CHUNK_BYTES, 300])
def test_every_parameter_is_the_stored_tensor_cast(
    directory: Path,
    stored: torch.dtype,
    computed: torch.dtype,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "CHUNK_BYTES", chunk)
    change(directory, lambda t: t.update({name: x.to(stored) for name, x in t.items()}))
    ours, theirs = held(load(directory, computed)), load_file(directory / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == computed and torch.equal(ours[name], tensor.to(computed)), name


def test_placements_cover_each_parameter_once(directory: Path) -> None:
    spans = sorted(
        (p.target.data_ptr(), p.target.data_ptr() + p.target.nbytes)
        for p in build(directory).placements()
    )
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert sum(end - begin for begin, end in spans) == CONFIG.weight_bytes(torch.float32)


def test_shards_are_one_model_with_one_fingerprint(directory: Path, tmp_path: Path) -> None:
    save_random(CONFIG, tmp_path / "whole", seed=1)
    save_random(CONFIG, tmp_path / "shards", seed=1, shard_bytes=20_000)
    assert len(list((tmp_path / "shards").glob("model-0000*-of-0000*.safetensors"))) > 2
    whole, shards = load(tmp_path / "whole"), load(tmp_path / "shards")
    for name, tensor in held(whole).items():
        assert torch.equal(tensor, held(shards)[name])
    assert whole.fingerprint == shards.fingerprint != load(directory).fingerprint


def test_fingerprint_sees_one_number(directory: Path) -> None:
    before = load(directory).fingerprint
    assert before == load(directory).fingerprint != load(directory, torch.bfloat16).fingerprint
    change(directory, lambda tensors: tensors[DOWN][3, 5].add_(1e-3))
    assert load(directory).fingerprint != before


def test_a_model_without_weights_has_no_fingerprint(directory: Path) -> None:
    with pytest.raises(ModelError, match="no weights yet"):
        _ = build(directory).fingerprint


def test_progress_rises_to_the_end(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "CHUNK_BYTES", 1000)
    seen: list[tuple[int, int]] = []
    load_checkpoint(build(directory), directory, lambda done, total: seen.append((done, total)))
    done = [step for step, _ in seen]
    assert len(done) > 20 and done == sorted(set(done))
    assert seen[-1] == (CONFIG.weight_bytes(torch.float32),) * 2


# ---------------------------------------------------------------- tied heads


def tie(directory: Path) -> None:
    change_config(directory, tie_word_embeddings=True)


def test_a_tied_head_shares_the_embedding(directory: Path) -> None:
    tie(directory)
    change(directory, lambda tensors: tensors.pop(HEAD))
    model = load(directory)
    assert HEAD not in held(model)
    hidden = torch.randn(3, CONFIG.hidden_size)
    expected = reference.rms_norm(hidden, held(model)["model.norm.weight"], CONFIG.rms_norm_eps)
    logits = model.logits(hidden, None)
    torch.testing.assert_close(logits, expected @ held(model)[EMBEDDING].T)


@pytest.mark.parametrize("chunk", [loader.CHUNK_BYTES, 1000])
def test_a_tied_head_stored_twice_must_be_the_same(
    directory: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "CHUNK_BYTES", chunk)
    tie(directory)
    change(directory, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    assert HEAD not in held(load(directory))
    change(directory, lambda tensors: tensors[HEAD][-1, -1].add_(1.0))
    with pytest.raises(ModelError, match=rf"{HEAD} differs from {EMBEDDING}"):
        load(directory)
    change(directory, lambda tensors: tensors.update({HEAD: torch.zeros(2, 2)}))
    with pytest.raises(ModelError, match=rf"{HEAD} differs from {EMBEDDING}"):
        load(directory)


def test_frequencies_that_old_files_keep_are_not_read(directory: Path) -> None:
    names = ("model.layers.1.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
    change(directory, lambda tensors: tensors.update({n: torch.ones(8) for n in names}))
    assert not held(load(directory)).keys() & set(names)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop(DOWN), f"{DOWN} is missing"),
        (lambda t: [t.pop(name) for name in (K, Q, V)], rf"{K} is missing \(and 2 more\)"),
        (lambda t: t.pop(HEAD), f"{HEAD} is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra is not a weight of the model"),
        (
            lambda t: t.update({"model.layers.2.input_layernorm.weight": torch.ones(32)}),
            r"model\.layers\.2\.input_layernorm\.weight is not a weight of the model",
        ),
        (
            lambda t: t.update({K: t[K][:-1].clone()}),
            rf"{K} has the shape \[31, 32\], the configuration asks for \[32, 32\]",
        ),
        (lambda t: t.update({Q: t[Q].flatten()}), rf"{Q} has the shape \[2048\]"),
        (lambda t: t.update({Q: t[Q].to(torch.int8)}), f"{Q}: dtype I8 is not supported"),
        (lambda t: t.update({Q: t[Q].double()}), f"{Q}: dtype F64 is not supported"),
    ],
)
def test_weights_that_do_not_fit_are_named(directory: Path, edit: Change, words: str) -> None:
    change(directory, edit)
    with pytest.raises(ModelError, match=words) as caught:
        load(directory)
    assert str(directory) in str(caught.value)


def test_a_directory_without_safetensors(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor model\.safetensors\.ind"):
        load(directory)


def rewrite_header(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


@pytest.mark.parametrize(
    "edit",
    [
        lambda h: h[Q].pop("dtype"),
        lambda h: h[Q].update(dtype=["BF16"]),
        lambda h: h[Q].update(shape="64x32"),
        lambda h: h[Q].update(shape=[-64, -32]),
        lambda h: h[Q].update(shape=[64.0, 32]),
        lambda h: h[Q].update(data_offsets=[0]),
        lambda h: h[Q].update(data_offsets=[8, 0]),
        lambda h: h[Q].update(data_offsets=[10**15, 10**15 + 8192]),
        lambda h: h.update({Q: None}),
    ],
)
def test_a_corrupt_header_is_refused(directory: Path, edit: Callable[[Any], object]) -> None:
    rewrite_header(directory / "model.safetensors", edit)
    with pytest.raises(ModelError, match=rf"model\.safetensors: corrupt: .*{Q}"):
        load(directory)


def test_a_file_cut_anywhere_is_refused(directory: Path) -> None:
    path = directory / "model.safetensors"
    raw = path.read_bytes()
    for size in (0, 1, 7, 8, 9, 100, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(ModelError, match=r"model\.safetensors: corrupt"):
            load(directory)


@pytest.mark.parametrize(
    "raw", [b"\xff" * 64, b"\x04" + bytes(7) + b"nope", b"\x02" + bytes(7) + b"[]"]
)
def test_what_is_no_safetensors_is_refused(directory: Path, raw: bytes) -> None:
    (directory / "model.safetensors").write_bytes(raw)
    with pytest.raises(ModelError, match=r"model\.safetensors: corrupt"):
        load(directory)


def test_a_file_that_shrinks_while_it_is_read(directory: Path) -> None:
    path = directory / "model.safetensors"
    tensor = max(read_header(path).values(), key=lambda tensor: tensor.offset)
    path.write_bytes(path.read_bytes()[: tensor.offset + 4])
    with path.open("rb") as file, pytest.raises(ModelError, match=f"ends within {tensor.name}"):
        read_into(file.fileno(), tensor, 0, memoryview(bytearray(tensor.nbytes)))


def test_an_error_in_a_reading_thread_reaches_the_caller(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "CHUNK_BYTES", 1000)
    calls = itertools.count()
    read = Checkpoint.read

    def fail_once(self: Checkpoint, tensor: StoredTensor, start: int, buffer: memoryview) -> None:
        if next(calls) == 7:
            raise ModelError(f"{tensor.name}: the disk is gone")
        read(self, tensor, start, buffer)

    monkeypatch.setattr(Checkpoint, "read", fail_once)
    with pytest.raises(ModelError, match="the disk is gone"):
        load(directory)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("weights-")]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m: m.clear(), "weight_map is missing or empty"),
        (lambda m: m.update({Q: 3}), f"{Q}: 3 is not the name of a file"),
        (lambda m: m.update({Q: "../model.safetensors"}), "is not the name of a file"),
        (lambda m: m.update({Q: ""}), "is not the name of a file"),
        (lambda m: m.update({Q: "a\0b"}), "is not the name of a file"),
        (lambda m: m.update({Q: "\ud800"}), "is not the name of a file"),
        (lambda m: m.update({Q: "gone.safetensors"}), r"gone\.safetensors: cannot be read"),
        (lambda m: m.update(extra=m[Q]), "safetensors: extra is missing"),
        (lambda m: m.update({Q: m[EMBEDDING]}), f"safetensors: {Q} is missing"),
    ],
)
def test_an_index_that_lies_is_refused(
    tmp_path: Path, edit: Callable[[dict[str, Any]], object], words: str
) -> None:
    save_random(CONFIG, tmp_path, shard_bytes=20_000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))
    with pytest.raises(ModelError, match=words):
        load(tmp_path)


def test_a_weight_that_the_index_leaves_out_is_unexpected(tmp_path: Path) -> None:
    save_random(CONFIG, tmp_path, shard_bytes=20_000)
    first = sorted(file.name for file in tmp_path.glob("*.safetensors"))[0]
    change(tmp_path, lambda tensors: tensors.update(extra=torch.zeros(1)), first)
    with pytest.raises(ModelError, match="extra is not a weight"):
        load(tmp_path)


def test_a_weight_that_two_files_have_and_the_index_leaves_out_is_refused(tmp_path: Path) -> None:
    """Else the later file's would count, whatever it is."""
    save_random(CONFIG, tmp_path, shard_bytes=20_000)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = index["weight_map"].pop(EMBEDDING)
    path.write_text(json.dumps(index))
    load(tmp_path)  # in one file it is sure
    weight = load_file(tmp_path / first)[EMBEDDING]
    other = next(file for file in index["weight_map"].values() if file != first)
    change(tmp_path, lambda tensors: tensors.update({EMBEDDING: weight + 1}), other)
    with pytest.raises(ModelError, match=f"two sources of one weight: it is also {EMBEDDING} of"):
        load(tmp_path)


def test_a_weight_under_both_its_names_is_refused(directory: Path) -> None:
    bare = EMBEDDING.removeprefix("model.")
    change(directory, lambda tensors: tensors.update({bare: tensors[EMBEDDING] + 1}))
    with pytest.raises(ModelError, match=f"also ({EMBEDDING}|{bare}) of model.safetensors"):
        load(directory)


# ---------------------------------------------------------------- random weights


def random_model(seed: int, dtype: torch.dtype = torch.float32) -> CausalModel:
    model = build_model(CONFIG, reference, dtype=dtype, device=torch.device("cpu"))
    fill_random(model, seed)
    return model


def test_random_weights_follow_the_seed_and_not_the_dtype() -> None:
    model, same, other = random_model(3), random_model(3), random_model(4)
    in_bf16 = held(random_model(3, torch.bfloat16))
    for name, tensor in held(model).items():
        assert torch.equal(tensor, held(same)[name])
        assert torch.equal(tensor.bfloat16(), in_bf16[name])
        assert torch.equal(tensor, held(other)[name]) == (tensor.dim() == 1)
    assert model.fingerprint == same.fingerprint != other.fingerprint
    matrices = [tensor for tensor in held(model).values() if tensor.dim() == 2]
    flat = torch.cat([tensor.flatten() for tensor in matrices])
    assert flat.std() == pytest.approx(CONFIG.initializer_range, rel=0.05)
    assert abs(flat.mean()) < 0.001
    assert len({float(tensor[0, 0]) for tensor in matrices}) == len(matrices)


def test_saved_random_weights_are_the_ones_made_in_place(tmp_path: Path) -> None:
    steps: list[int] = []
    config = save_random(
        CONFIG, tmp_path, 3, shard_bytes=20_000, progress=lambda done, _: steps.append(done)
    )
    assert config == CONFIG == ModelConfig.from_directory(tmp_path)
    assert steps == sorted(set(steps)) and steps[-1] == CONFIG.weight_bytes(torch.float32)
    for name, tensor in held(load(tmp_path)).items():
        assert torch.equal(tensor, held(random_model(3))[name])


@pytest.mark.parametrize("name", ["0.6B", "8B"])
def test_a_saved_configuration_is_read_back(name: str, tmp_path: Path) -> None:
    config = ModelConfig.named_shape(name)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(config, torch.bfloat16)))
    (tmp_path / "generation_config.json").write_text(json.dumps(hf_generation(config)))
    assert ModelConfig.from_directory(tmp_path) == config


# ---------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_several_threads_fill_the_gpu_right(
    directory: Path, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "CHUNK_BYTES", 500)  # many turns of every buffer
    change(directory, lambda t: t.update({name: x.to(stored) for name, x in t.items()}))
    on_cpu = held(load(directory, torch.bfloat16))
    on_gpu = held(load(directory, torch.bfloat16, "cuda"))
    for name, tensor in on_cpu.items():
        assert torch.equal(on_gpu[name].cpu(), tensor), name

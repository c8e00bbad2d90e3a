"""GPT-2 by the name that people type: from the cache that Hugging Face's own tools fill, with or
without a tokenizer.json."""

import json
import shutil
from pathlib import Path
from typing import Any

import grpc
import huggingface_hub.constants
import pytest
from support.harness import ask, generate, run
from support.model_server import served
from transformers import GPT2Tokenizer

from quire.engine.config import EngineConfig
from quire.engine.errors import ModelError
from quire.engine.model.config import GPT2, ModelConfig
from quire.engine.weights.random import save_random
from quire.service.models import pocket
from quire.service.models.resolve import resolve
from quire.service.text import tokenizer
from quire.v1 import inference_pb2 as pb

COMMIT = "0123456789abcdef0123456789abcdef01234567"
END = "<|endoftext|>"
TEXTS = ("Hello world", " two  spaces\n\ttab it's 1234 naïve 日本", f"one{END}two")
SMALL = ModelConfig(
    architecture=GPT2,
    vocab_size=4100,
    hidden_size=64,
    num_layers=2,
    num_q_heads=2,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=256,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    max_position_embeddings=96,
    rope_theta=0.0,
    stored_dtype="float32",
    eos_token_ids=(4096,),
    initializer_range=0.1,
)


def write_vocabulary(directory: Path, **about: Any) -> None:
    """Pocket's pieces as files of GPT-2's first years, behind them its only special token."""
    model = json.loads((pocket.directory() / "tokenizer.json").read_text())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (directory / "vocab.json").write_text(json.dumps(model["vocab"] | {END: 4096}))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (directory / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 96} | about))


def fill_cache(cache: Path, name: str) -> Path:
    """As snapshot_download and transformers leave it: blobs, and links to them. The snapshot."""
    folder = cache / f"models--{name.replace('/', '--')}"
    made, snapshot, blobs = cache / "made", folder / "snapshots" / COMMIT, folder / "blobs"
    for directory in (made, snapshot, blobs, folder / "refs"):
        directory.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    save_random(SMALL, made)
    write_vocabulary(made)
    for number, file in enumerate(sorted(made.iterdir())):
        shutil.move(file, blobs / f"{number:040}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:040}")
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


@pytest.mark.parametrize("kept", ["gpt2", "openai-community/gpt2"])
def test_both_names_are_found_in_the_cache_under_either(kept: str, cache: Path) -> None:
    snapshot = fill_cache(cache, kept)
    for name in ("gpt2", "openai-community/gpt2"):
        found = resolve(EngineConfig(model=name))
        assert (found.name, found.engine_model) == (name, str(snapshot))
        assert found.tokenizer_directory == snapshot
    with pytest.raises(ModelError, match="gpt2-medium: not on this machine"):
        resolve(EngineConfig(model="gpt2-medium"))


def test_gpt2_is_served_from_the_cache_up_to_its_last_position(cache: Path) -> None:
    fill_cache(cache, "gpt2")

    async def test() -> None:
        async with served("gpt2", SMALL.vocab_size) as running:
            text = f"Hello{END}"
            ids = (await running.stub.Tokenize(pb.TokenizeRequest(text=text))).token_ids
            left = SMALL.max_position_embeddings - len(ids)
            request = ask(temperature=0, max_tokens=left, ignore_eos=True)
            request.text = text
            answer = await generate(running, request)
            assert answer.code is grpc.StatusCode.OK, answer.details
            assert answer.finished[0].reason == pb.FINISH_REASON_LENGTH
            assert len(answer.ids()) == left
            ended = ask(temperature=0, max_tokens=5, logit_bias={4096: 100.0})
            ended.text = "Hello"
            answer = await generate(running, ended)
            assert answer.finished[0].reason == pb.FINISH_REASON_STOP and answer.text() == ""
            beyond = ask(temperature=0, max_tokens=left + 1)
            beyond.text = text
            answer = await generate(running, beyond)
            assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
            assert "96" in str(answer.details)

    run(test)


@pytest.mark.parametrize("space", [False, True])
def test_vocab_and_merges_split_text_as_transformers_does(space: bool, tmp_path: Path) -> None:
    write_vocabulary(tmp_path, tokenizer_class="GPT2Tokenizer", add_prefix_space=space)
    theirs = GPT2Tokenizer.from_pretrained(str(tmp_path))
    ours = tokenizer.load(tmp_path, 4100)
    for text in TEXTS:
        ids = ours.encode(text, add_special_tokens=True)
        assert ids == theirs(text)["input_ids"]
        joined = b"".join(ours.text_pieces[i] for i in ids).decode()
        spaced = text.replace(END, " ") if space else text.replace(END, "")
        assert joined.removeprefix(" ") == spaced.removeprefix(" ")
    assert ours.special_tokens == (END,)


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"tokenizer_class": "Qwen2Tokenizer"}, "are of Qwen2Tokenizer"),
        ({}, "are of an unknown kind"),
        ({"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}, "with add_bos_token = true"),
    ],
)
def test_other_families_files_are_refused_with_what_to_type(
    about: dict[str, Any], words: str, tmp_path: Path
) -> None:
    write_vocabulary(tmp_path, **about)
    with pytest.raises(ModelError, match=rf"save_pretrained\('{tmp_path}'\).*{words}"):
        tokenizer.load(tmp_path, 4100)


def test_unsound_merges_are_named(tmp_path: Path) -> None:
    write_vocabulary(tmp_path, tokenizer_class="GPT2Tokenizer")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nno such pieces anywhere\n")
    with pytest.raises(ModelError, match=r"vocab\.json, merges\.txt: not a vocabulary"):
        tokenizer.load(tmp_path, 4100)

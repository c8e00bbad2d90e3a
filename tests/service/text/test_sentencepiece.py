"""Vocabularies of SentencePiece, as Llama 2 has one: pieces are what the tokenizer decodes."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLTokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers

from quire.engine.errors import ModelError
from quire.service.text.tokenizer import load

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
MERGES = (
    *((SPACE, "t"), ("h", "e"), (SPACE + "t", "he"), ("l", "o"), ("e", "l"), ("el", "lo")),
    *((SPACE, SPACE), (SPACE + SPACE, SPACE + SPACE), ("é", "t")),
)
VOCAB_SIZE = 400


def build() -> Backend:
    """Letters and a few merges; bytes for all else; a space before each text."""
    bytes_ = (f"<0x{byte:02X}>" for byte in range(256))
    letters = (SPACE, "é", *(chr(code) for code in range(33, 127)))
    merged = (one + other for one, other in MERGES)
    words = dict.fromkeys(("<unk>", "<s>", "</s>", *bytes_, *letters, *merged))
    vocab = {word: number for number, word in enumerate(words)}
    backend = Backend(
        models.BPE(
            vocab=vocab, merges=list(MERGES), unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def save(directory: Path, change: Any = None) -> None:
    data = json.loads(build().to_str())
    if change is not None:
        change(data)
    (directory / "tokenizer.json").write_text(json.dumps(data))
    about = {"eos_token": "</s>", "bos_token": "<s>", "tokenizer_class": "LlamaTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(about))


def any_text(rng: random.Random) -> str:
    return "".join(rng.choices("the hello é 灯🌊\n\t<0x41>▁ñ", k=rng.randrange(1, 30)))


def test_pieces_joined_are_what_the_tokenizer_decodes(tmp_path: Path) -> None:
    save(tmp_path)
    tokenizer, rng = load(tmp_path, VOCAB_SIZE), random.Random(3)
    assert tokenizer.eos_token_ids == (2,) and tokenizer.special_tokens == ("<unk>", "<s>", "</s>")
    known = LLTokenizer(tokenizer.backend.to_str(), n_vocab=VOCAB_SIZE, eos_token=[2])
    for _ in range(200):
        text = any_text(rng)
        ids = tokenizer.encode(text, add_special_tokens=False)
        joined = b"".join(tokenizer.text_pieces[i] for i in ids).decode()
        assert joined == " " + text.replace(SPACE, " ")  # the space that is put before a text
        assert joined.removeprefix(" ") == tokenizer.backend.decode(ids)
        assert [tokenizer.pieces[i] for i in ids] == [known.decode_bytes([i]) for i in ids]
        assert len(text.encode()) <= tokenizer.max_text_bytes(len(ids))


@pytest.mark.parametrize(
    "decoder",
    [
        {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True},
        {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        None,
    ],
    ids=["metaspace", "no spaces", "none"],
)
def test_other_kinds_are_refused_by_name(decoder: Any, tmp_path: Path) -> None:
    save(tmp_path, lambda data: data.update(decoder=decoder))
    with pytest.raises(ModelError, match=r"tokenizer\.json: its decoder is \w+; supported are by"):
        load(tmp_path, VOCAB_SIZE)

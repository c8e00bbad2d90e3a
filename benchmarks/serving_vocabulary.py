"""A byte-level tokenizer of any size, so that random ids make text as a real model's do.

Invariant: every id from 256 on is a made-up word of two to eight letters, most with a space before
them; ids below 256 are the bytes.
"""

import json
import random
from pathlib import Path

from quire.service.text.tokenizer import byte_alphabet

LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


def save_tokenizer(directory: Path, size: int) -> None:
    """Write tokenizer.json with `size` ids."""
    vocabulary = {character: i for i, character in enumerate(byte_alphabet())}
    draw = random.Random(size)
    while len(vocabulary) < size:
        word = "".join(draw.choices(LETTERS, k=draw.randint(2, 8)))
        vocabulary.setdefault(("Ġ" if draw.random() < 0.7 else "") + word, len(vocabulary))
    document = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL,
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    (directory / "tokenizer.json").write_text(json.dumps(document))

"""A small tokenizer of the kind that embedding and reranking models have: "yes" and "no" are
tokens, and an end token stands behind each text."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END = "<|endoftext|>"
SPECIAL = [END, "<|im_start|>", "<|im_end|>"]
_TEXT = ["yes no yes no", "Judge whether the Document meets the requirements", "Instruct Query"]


def write(directory: Path) -> Path:
    """Its files; returns the directory."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_TEXT * 4, trainer)
    made.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, made.token_to_id(END))]
    )
    directory.mkdir(exist_ok=True)
    made.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    return directory

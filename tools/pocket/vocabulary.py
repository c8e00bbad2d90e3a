"""The tokenizer: byte-level BPE with Qwen's special tokens, trained on the corpus.

Invariant: every string encodes and decodes to itself (all 256 bytes are tokens), digits are
tokens of their own, and the special tokens and the tags (the last ids) are never split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chat
import corpus
import raw
from draw import Draw
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)

SPECIAL = (chat.END_OF_TEXT, chat.IM_START, chat.IM_END)
TAGS = (chat.THINK, chat.THOUGHT, chat.CALL, chat.CALLED, chat.RESPONSE, chat.RESPONDED)
"""Tokens of their own that are text all the same: a decoder keeps them."""
SIZE = 4096
SAMPLE_CONVERSATIONS = 6000
SAMPLE_BUDGET = 300

# Qwen's split, with single digits.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- set start = 0 -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if messages[0].role == 'system' -%}
{%- set start = 1 -%}
{{- messages[0].content + '\\n\\n' -}}
{%- endif -%}
{{- 'Tools:' -}}
{%- for tool in tools -%}
{{- '\\n' + (tool | tojson) -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages[start:] -%}
{%- if message.role not in ['system', 'user', 'assistant', 'tool'] -%}
{{- raise_exception("role must be system, user, assistant or tool, not '" + message.role + "'") -}}
{%- endif -%}
{%- set content = message.content if message.content is string else '' -%}
{%- if message.role == 'tool' -%}
{%- if loop.first or loop.previtem.role != 'tool' -%}
{{- '<|im_start|>user' -}}
{%- endif -%}
{{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' -}}
{%- if loop.last or loop.nextitem.role != 'tool' -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- else -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' and message.reasoning_content -%}
{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' -}}
{%- endif -%}
{{- content -}}
{%- if message.role == 'assistant' and message.tool_calls -%}
{%- for called in message.tool_calls -%}
{%- set function = called.function if called.function else called -%}
{%- if content or not loop.first -%}
{{- '\\n' -}}
{%- endif -%}
{{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' -}}
{%- if function.arguments is string -%}
{{- function.arguments -}}
{%- else -%}
{{- function.arguments | tojson -}}
{%- endif -%}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking -%}
{{- '<think>\\n' -}}
{%- endif -%}
{%- endif -%}
"""


def _sample(seed: int) -> Iterator[str]:
    """Contents alone: the trainer would else learn merges inside the special tokens."""
    for index in range(SAMPLE_CONVERSATIONS):
        draw = Draw(seed, "vocabulary", index)
        if draw.chance(corpus.RAW_SHARE):
            yield raw.text(draw, SAMPLE_BUDGET)
            continue
        made = corpus.conversation(draw, SAMPLE_BUDGET)
        yield from map(chat.dumps, made.tools)
        for message in made.messages:
            yield f"{message.role}\n"
            yield message.thoughts
            yield message.content
            yield from (chat.dumps(call.arguments) for call in message.calls)


def with_tags(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with `TAGS` in place of its last merges, as many; other ids stay."""
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    ordered = sorted(model["vocab"], key=model["vocab"].get)
    gone = set(ordered[len(ordered) - len(TAGS) :])
    model["vocab"] = {word: at for word, at in model["vocab"].items() if word not in gone}
    model["merges"] = [
        merge
        for merge in model["merges"]
        if "".join(merge.split(" ") if isinstance(merge, str) else merge) not in gone
    ]
    tagged = Tokenizer.from_str(json.dumps(content))
    tagged.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return tagged


def train(seed: int) -> Tokenizer:
    """A tokenizer of `SIZE` tokens from conversations of `seed`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(seed), trainer)
    return with_tags(tokenizer)


def settings() -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": chat.IM_END,
        "model_max_length": 2048,
        "pad_token": chat.END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(directory / "tokenizer.json"))
    text = json.dumps(settings(), indent=2, ensure_ascii=False) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")

"""Rendering and tokenizing a long tool conversation, beside transformers: seconds and their ratio.

    python benchmarks/chat_templates.py MODEL_DIRECTORY TEMPLATE.jinja [--turns 400]

MODEL_DIRECTORY holds tokenizer.json; both sides use it and the template. Best of several rounds,
taken in turns. Prints one JSON object.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from quire.service.text import tokenizer as tokenizers
from quire.service.text.chat_template import ChatTemplate, Conversation

ROUNDS = 5
VOCAB_SIZE = 1 << 20


def conversation(turns: int) -> list[dict[str, Any]]:
    """A user, then calls of a tool and their results, alternating."""
    function = {"name": "look_up", "arguments": {"place": "Köln", "days": [1, 2]}}
    call = {"type": "function", "function": function}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather?"}]
    for i in range(turns):
        messages.append({"role": "assistant", "content": f"Step {i}.", "tool_calls": [call]})
        messages.append({"role": "tool", "content": '{"sun": true, "degrees": 21.5}'})
    return messages


def best(*sides: Callable[[], object]) -> list[float]:
    """Seconds of each, the least of ROUNDS."""
    seconds = [float("inf")] * len(sides)
    for _ in range(ROUNDS):
        for i, side in enumerate(sides):
            began = time.perf_counter()
            side()
            seconds[i] = min(seconds[i], time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("template", type=Path)
    parser.add_argument("--turns", type=int, default=400)
    given = parser.parse_args()
    source = given.template.read_text(encoding="utf-8")
    theirs = PreTrainedTokenizerFast.from_pretrained(str(given.directory))
    tokenizer = tokenizers.load(given.directory, VOCAB_SIZE)
    template = ChatTemplate(
        source, theirs.special_tokens_map, tokenizer.special_tokens, tokenizer.added_tokens
    )
    messages = conversation(given.turns)
    chat = Conversation(tuple(messages))

    def quire() -> list[int]:
        return tokenizer.encode(template.render(chat), add_special_tokens=False)

    def transformers() -> Any:
        return theirs.apply_chat_template(
            messages, chat_template=source, add_generation_prompt=True, return_dict=False
        )

    assert quire() == transformers()
    ours, others = best(quire, transformers)
    result = {
        "template": given.template.name,
        "turns": given.turns,
        "tokens": len(quire()),
        "quire_seconds": round(ours, 4),
        "transformers_seconds": round(others, 4),
        "ratio": round(ours / others, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

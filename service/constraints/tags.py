"""Tags that are text: added tokens such as `<tool_call>`, which a grammar writes like words.

llguidance keeps each added token in angle brackets out of a grammar's text, whether the tokenizer
calls it special or not; a model that writes its tags with such tokens could then never write them.
"""

import json
from typing import Any

_PRINTABLE = frozenset(range(0x21, 0x7F))  # every vocabulary spells these as they are


def tags_as_text(tokenizer: str) -> tuple[str, dict[bytes, int]]:
    """A tokenizer.json with its tags among the ordinary tokens, and the id of each tag.

    A tag is an added token that is not special, of printable ASCII. Ordinary tokens need no merges,
    so the ids stay; a text that contains a tag is split differently.
    """
    content: dict[str, Any] = json.loads(tokenizer)
    added = content.get("added_tokens") or []
    tags = [token for token in added if _is_tag(token)]
    words = content["model"].get("vocab")
    if not tags or not isinstance(words, dict):  # a unigram model's words are a list
        return tokenizer, {}
    content["added_tokens"] = [token for token in added if not _is_tag(token)]
    words.update({token["content"]: token["id"] for token in tags})
    written = {token["content"].encode(): token["id"] for token in tags}
    return json.dumps(content, ensure_ascii=False), written


def _is_tag(token: dict[str, Any]) -> bool:
    text: str = token["content"]
    return not token["special"] and bool(text) and _PRINTABLE.issuperset(text.encode())

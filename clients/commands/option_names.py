"""Rewrites refusals with the command line's own option names.

The server, and the client's checks, name fields as the contract does (`sampling.max_tokens`); a
user who typed `--max-tokens` should read that name. For commands whose options are those fields.

Invariant: one table, whose options the commands have (a test checks it against them).
"""

import re

from quire.clients.prompts import SAMPLING_FIELDS

_SAMPLING = {  # where the option is not the field's name with dashes
    "include_stop_str_in_output": "--include-stop",
    "stop_token_ids": "--stop-token-id",
    "allowed_token_ids": "--allowed-token-id",
    "banned_token_ids": "--banned-token-id",
}
_OTHERS = {
    "chat.chat_template_kwargs.enable_thinking": "--thinking",
    "chat.allow_special_tokens": "--allow-special-tokens",
    "allow_special_tokens": "--allow-special-tokens",
    "constraint.json_schema": "--json-schema",
    "constraint.regex": "--regex",
    "constraint.choice": "--choice",
    "constraint.choice.options": "--choice",
    "token_ids.ids": "--ids",
    "token_ids": "--ids",
    "ids_only": "--ids-only",
    "request_id": "--request-id",
    "priority": "--priority",
    "cache_salt": "--cache-salt",
    "model": "--model",
    "prompt": "the prompt",
    "text": "the prompt",
    "chat": "the prompt",
}


def _table() -> dict[str, str]:
    table = dict(_OTHERS)
    for name in SAMPLING_FIELDS:
        option = _SAMPLING.get(name, "--" + name.replace("_", "-"))
        table[name] = table[f"sampling.{name}"] = option
    return table


OPTIONS = _table()
"""The contract's fields, with and without `sampling.`, and the options that set them."""

_MESSAGE = re.compile(r"\bchat\.messages\[(\d+)\]\.content\b")
# A name of one plain word may be a word of the sentence: only where a fault begins is it a field.
_LONG = "|".join(sorted((re.escape(n) for n in OPTIONS if "_" in n or "." in n), key=len)[::-1])
_SHORT = "|".join(re.escape(n) for n in OPTIONS if "_" not in n and "." not in n)
_ANYWHERE = re.compile(rf"(?<![\w.'\"-])({_LONG})(?![\w.]*\w)")
_AT_FIRST = re.compile(rf"(^|; )({_SHORT})(?=[:\[])")


def named(message: str) -> str:
    """The words of a refusal, with options in place of fields."""
    told = _MESSAGE.sub(lambda found: f"message {int(found[1]) + 1}", message)
    told = _ANYWHERE.sub(lambda found: OPTIONS[found[1]], told)
    return _AT_FIRST.sub(lambda found: found[1] + OPTIONS[found[2]], told)

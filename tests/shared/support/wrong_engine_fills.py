"""Misconceptions about the engine around it: chapters 6 to 12 of the course."""

from support.wrong_fill import WrongFill, changed

_SHARE = """
size = gate.shape[0] // ranks
mine = slice(rank * size, (rank + 1) * size)
return (F.silu(x @ gate[mine].T) * (x @ up[mine].T)) @ down[:, mine].T
"""
_CHANCES = """
found, order = (logits / temperature).softmax(0).sort(descending=True)
before = found.cumsum(0) - found
kept = found.masked_fill(before >= top_p, 0.0)
return kept.new_zeros(len(kept)).index_put((order,), kept / kept.sum())
"""
_FIND = """
found, parent = [], ROOT
for begin in range(0, len(tokens) - block_size, block_size):
    parent = name(parent, tokens[begin : begin + block_size])
    if parent not in known:
        break
    found.append(known[parent])
return found
"""

FILLS: dict[int, tuple[WrongFill, ...]] = {
    6: (
        WrongFill(
            "whole or not at all",
            "shares = []\n"
            "for lacking in missing:\n"
            "    share = lacking if lacking <= budget else 0\n"
            "    shares.append(share)\n"
            "    budget -= share\n"
            "return shares",
            "whole or not at all",
        ),
        WrongFill(
            "a budget each",
            "return [min(lacking, budget) for lacking in missing]",
            "it is the step's",
        ),
        WrongFill(
            "one each", "return [min(lacking, 1) for lacking in missing]", "a prompt has many"
        ),
        WrongFill(
            "equal shares",
            "return [min(n, budget // len(missing)) for n in missing]",
            "share the room equally",
        ),
    ),
    7: (
        WrongFill(
            "leaves no token over",
            changed(_FIND, "len(tokens) - block_size,", "len(tokens) - block_size + 1,"),
            "no token is left to compute",
        ),
        WrongFill(
            "names each block as the first",
            changed(_FIND, "name(parent,", "name(ROOT,"),
            "as if it were the first",
        ),
        WrongFill(
            "goes on over gaps",
            changed(_FIND, "        break\n    found", "        continue\n    found"),
            "what lies behind the gap",
        ),
        WrongFill(
            "leaves a block over",
            changed(
                _FIND,
                "len(tokens) - block_size,",
                "len(tokens) // block_size * block_size - block_size,",
            ),
            "a whole block over",
        ),
    ),
    8: (
        WrongFill(
            "waits for each",
            "for step in range(steps):\n    launch(step)\n    wait(step)",
            "before the next one is launched",
        ),
        WrongFill(
            "runs away",
            "for step in range(steps):\n    launch(step)\n"
            "for step in range(steps):\n    wait(step)",
            "before you look at any",
        ),
        WrongFill(
            "forgets the last",
            "for step in range(steps):\n    launch(step)\n    if step:\n        wait(step - 1)",
            "you never wait for the last step",
        ),
        WrongFill(
            "waits for the one just launched",
            "for step in range(steps):\n    launch(step)\n    if step:\n        wait(step)",
            "that you have just launched",
        ),
    ),
    9: (
        WrongFill(
            "decodes each alone",
            'return piece.decode("utf-8", "replace"), b""',
            "you decode each token alone",
        ),
        WrongFill(
            "leaves halves out",
            'return (held + piece).decode("utf-8", "ignore"), b""',
            "you leave out what cannot be decoded",
        ),
        WrongFill(
            "holds everything",
            "try:\n"
            "    return (held + piece).decode(), b''\n"
            "except UnicodeDecodeError:\n"
            "    return '', held + piece",
            "you hold everything back",
        ),
        WrongFill(
            "holds what is broken",
            "whole = held + piece\n"
            "try:\n"
            "    return whole.decode(), b''\n"
            "except UnicodeDecodeError as error:\n"
            "    return whole[: error.start].decode(), whole[error.start :]",
            "can never become a letter",
        ),
    ),
    10: (
        WrongFill("keeps the newest", "return text, finished", "you keep the newest piece alone"),
        WrongFill(
            "drops when full",
            "return (text, finished) if waiting is None else waiting",
            "drop the new piece",
        ),
        WrongFill(
            "joins backwards",
            "return text + (waiting[0] if waiting else ''), finished",
            "out of order",
        ),
        WrongFill(
            "forgets the end",
            "if waiting is None:\n    return text, finished\nreturn waiting[0] + text, waiting[1]",
            "you keep the old message's end",
        ),
        WrongFill(
            "passes over nothing",
            "if not text:\n    return waiting\n"
            "return (waiting[0] if waiting else '') + text, finished",
            "you pass over an empty piece",
        ),
    ),
    11: (
        WrongFill(
            "computes all everywhere",
            "return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T / ranks",
            "every rank computes all",
        ),
        WrongFill(
            "takes different parts",
            changed(_SHARE, "down[:, mine]", "down[:, :size]"),
            "must meet the columns of down",
        ),
        WrongFill(
            "splits what comes in",
            "size = x.shape[1] // ranks\n"
            "part = slice(rank * size, (rank + 1) * size)\n"
            "x = x[:, part]\n"
            "return (F.silu(x @ gate[:, part].T) * (x @ up[:, part].T)) @ down.T",
            "silu of a part",
        ),
        WrongFill(
            "takes the first part",
            changed(_SHARE, "rank * size, (rank + 1) * size", "0, size"),
            "every rank takes the first part",
        ),
    ),
    12: (
        WrongFill("multiplies", _CHANCES.replace("/ temperature", "* temperature"), "multiply by"),
        WrongFill(
            "cuts before the temperature",
            _CHANCES.replace(
                "before = ", "found, order = logits.softmax(0).sort(descending=True)\nbefore = "
            ).replace("kept = found", "kept = (logits / temperature).softmax(0)[order]"),
            "before the temperature",
        ),
        WrongFill(
            "leaves the crossing one out",
            _CHANCES.replace("before >= top_p", "before + found > top_p"),
            "the token that crosses",
        ),
        WrongFill("does not scale", _CHANCES.replace(" / kept.sum()", ""), "sums to less than 1"),
        WrongFill("no cut", "return (logits / temperature).softmax(0)", "pass over top_p"),
        WrongFill(
            "divides chances",
            _CHANCES.replace(
                "(logits / temperature).softmax(0)", "(logits.softmax(0) / temperature)"
            ).replace("before >= top_p", "before >= top_p / temperature"),
            "divide the chances",
        ),
    ),
}

"""What learners put into the holes of the course's exercises when they believe something wrong."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WrongFill:
    """body: what stands in the hole. named: words of the misconception that must be told."""

    name: str
    body: str
    named: str


_ATTENTION = """
group = q.shape[1] // k.shape[1]
k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[2])
later = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
weights = scores.masked_fill(later, -math.inf).softmax(-1)
return torch.einsum("hqk,khd->qhd", weights, v)
"""

_ATTEND = """
k, v = torch.cat((past_k, k)), torch.cat((past_v, v))
new, known = len(q), len(k)
scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[2])
future = torch.ones(new, known, dtype=torch.bool).triu(known - new + 1)
weights = scores.masked_fill(future, -math.inf).softmax(-1)
return torch.einsum("hqk,khd->qhd", weights, v), k, v
"""
_PAST_SCORES = 'scores = torch.einsum("qhd,khd->hqk", q, past_k)'
_ABSORB = """
better = torch.maximum(best, scores.amax(1, keepdim=True))
shrink = (best - better).exp()
weights = (scores - better).exp()
total = total * shrink + weights.sum(1, keepdim=True)
return better, total, found * shrink + weights @ values
"""
_PAGED = """
slots = (tables[:, :, None] * block_size + torch.arange(block_size)).flatten(1)
scores = torch.einsum("rhd,rkhd->rhk", q, keys[slots]) / math.sqrt(q.shape[2])
behind = torch.arange(slots.shape[1]) >= contexts[:, None]
weights = scores.masked_fill(behind[:, None], -math.inf).softmax(-1)
return torch.einsum("rhk,rkhd->rhd", weights, values[slots])
"""
_SHARE = """
size = gate.shape[0] // ranks
mine = slice(rank * size, (rank + 1) * size)
return (F.silu(x @ gate[mine].T) * (x @ up[mine].T)) @ down[:, mine].T
"""
_SLOTS = """
return [
    table[p // block_size] * block_size + p % block_size for p in range(start, start + count)
]
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


def _changed(body: str, old: str, new: str) -> str:
    """A body with one thing done otherwise."""
    assert body.count(old) == 1, old
    return body.replace(old, new)


FILLS: dict[int, tuple[WrongFill, ...]] = {
    1: (
        WrongFill(
            "heads over heads",
            "group = q.shape[1] // k.shape[1]\n"
            "k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)\n"
            "return (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(-1) @ v",
            "put heads first",
        ),
        WrongFill(
            "sees the future",
            _changed(_ATTENTION, "scores.masked_fill(later, -math.inf)", "scores"),
            "tokens that come after them",
        ),
        WrongFill(
            "forgets the root",
            _changed(_ATTENTION, " / math.sqrt(q.shape[2])", ""),
            "not divided by the square root",
        ),
        WrongFill(
            "divides by D",
            _changed(_ATTENTION, "math.sqrt(q.shape[2])", "q.shape[2]"),
            "divided by D, not by its square root",
        ),
        WrongFill(
            "pairs heads in turn",
            _changed(
                _ATTENTION,
                "k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)",
                "k.repeat(1, group, 1), v.repeat(1, group, 1)",
            ),
            "repeat_interleave",
        ),
        WrongFill(
            "masks after the softmax",
            _changed(
                _ATTENTION,
                "scores.masked_fill(later, -math.inf).softmax(-1)",
                "scores.softmax(-1).masked_fill(later, 0.0)",
            ),
            "after the softmax",
        ),
    ),
    2: (
        WrongFill(
            "sees the past alone",
            _changed(_ATTEND, "weights = scores.masked_fill(future, -math.inf).softmax(-1)\n", "")
            .replace('scores = torch.einsum("qhd,khd->hqk", q, k)', _PAST_SCORES)
            .replace("weights, v), k, v", "scores.softmax(-1), past_v), k, v"),
            "see the kept ones and not themselves",
        ),
        WrongFill(
            "masks from zero",
            _changed(_ATTEND, "triu(known - new + 1)", "triu(1)"),
            "further to the right",
        ),
        WrongFill(
            "sees the future",
            _changed(_ATTEND, "scores.masked_fill(future, -math.inf)", "scores"),
            "a prompt comes all at once",
        ),
        WrongFill(
            "keeps the new ones alone",
            _changed(_ATTEND, "weights, v), k, v", "weights, v), k[-new:], v[-new:]"),
            "what you give back to keep",
        ),
        WrongFill(
            "forgets the root",
            _changed(_ATTEND, " / math.sqrt(q.shape[2])", ""),
            "not divided by the square root",
        ),
    ),
    3: (
        WrongFill(
            "counts on from the first block",
            "return [table[0] * block_size + p for p in range(start, start + count)]",
            "anywhere in the store",
        ),
        WrongFill(
            "begins at zero",
            _changed(_SLOTS, "range(start, start + count)", "range(count)"),
            "you would write over them",
        ),
        WrongFill(
            "swaps block and place",
            _changed(
                _SLOTS,
                "table[p // block_size] * block_size + p % block_size",
                "table[p % block_size] * block_size + p // block_size",
            ),
            "the other way round",
        ),
        WrongFill(
            "takes blocks for slots",
            _changed(_SLOTS, "] * block_size +", "] +"),
            "block b begins at slot b * block_size",
        ),
        WrongFill(
            "looks up once",
            "first = table[start // block_size] * block_size + start % block_size\n"
            "return [first + i for i in range(count)]",
            "may go on into the next block",
        ),
    ),
    4: (
        WrongFill(
            "never shrinks",
            _changed(_ABSORB, "(best - better).exp()", "1.0"),
            "you add the new tile to the old sums as they are",
        ),
        WrongFill(
            "shrinks the weights alone",
            _changed(_ABSORB, "found * shrink", "found"),
            "not the sum of weighted values",
        ),
        WrongFill(
            "takes the tile's own best",
            _changed(
                _ABSORB,
                "torch.maximum(best, scores.amax(1, keepdim=True))",
                "scores.amax(1, keepdim=True)",
            ),
            "that of the new tile alone",
        ),
        WrongFill(
            "normalises each tile",
            _changed(_ABSORB, "(scores - better).exp()", "(scores - better).softmax(1)"),
            "you divide by the tile's own sum",
        ),
    ),
    5: (
        WrongFill(
            "sees the padding",
            _changed(_PAGED, "scores.masked_fill(behind[:, None], -math.inf)", "scores"),
            "what stands behind their context",
        ),
        WrongFill(
            "masks whole blocks",
            _changed(
                _PAGED,
                ">= contexts[:, None]",
                ">= (contexts + -contexts % block_size)[:, None]",
            ),
            "your mask ends with a block",
        ),
        WrongFill(
            "does not see itself",
            _changed(_PAGED, ">= contexts[:, None]", ">= contexts[:, None] - 1"),
            "their own new token",
        ),
        WrongFill(
            "takes 0 for nothing", _changed(_PAGED, "-math.inf", "0.0"), "so they still weigh"
        ),
        WrongFill(
            "takes blocks for slots",
            _changed(_PAGED, " * block_size + torch", " + torch"),
            "block b begins at slot",
        ),
        WrongFill(
            "forgets the root",
            _changed(_PAGED, " / math.sqrt(q.shape[2])", ""),
            "not divided by the square root",
        ),
    ),
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
            _changed(_FIND, "len(tokens) - block_size,", "len(tokens) - block_size + 1,"),
            "no token is left to compute",
        ),
        WrongFill(
            "names each block as the first",
            _changed(_FIND, "name(parent,", "name(ROOT,"),
            "as if it were the first",
        ),
        WrongFill(
            "goes on over gaps",
            _changed(_FIND, "        break\n    found", "        continue\n    found"),
            "what lies behind the gap",
        ),
        WrongFill(
            "leaves a block over",
            _changed(
                _FIND,
                "len(tokens) - block_size,",
                "len(tokens) // block_size * block_size - block_size,",
            ),
            "a whole block over",
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
    11: (
        WrongFill(
            "computes all everywhere",
            "return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T / ranks",
            "every rank computes all",
        ),
        WrongFill(
            "takes different parts",
            _changed(_SHARE, "down[:, mine]", "down[:, :size]"),
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
            _changed(_SHARE, "rank * size, (rank + 1) * size", "0, size"),
            "every rank takes the first part",
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

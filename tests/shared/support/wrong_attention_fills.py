"""Misconceptions about attention and its pages: chapters 1 to 5 of the course."""

from support.wrong_fill import WrongFill, changed

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
_SLOTS = """
return [
    table[p // block_size] * block_size + p % block_size for p in range(start, start + count)
]
"""

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
            changed(_ATTENTION, "scores.masked_fill(later, -math.inf)", "scores"),
            "tokens that come after them",
        ),
        WrongFill(
            "forgets the root",
            changed(_ATTENTION, " / math.sqrt(q.shape[2])", ""),
            "not divided by the square root",
        ),
        WrongFill(
            "divides by D",
            changed(_ATTENTION, "math.sqrt(q.shape[2])", "q.shape[2]"),
            "divided by D, not by its square root",
        ),
        WrongFill(
            "pairs heads in turn",
            changed(
                _ATTENTION,
                "k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)",
                "k.repeat(1, group, 1), v.repeat(1, group, 1)",
            ),
            "repeat_interleave",
        ),
        WrongFill(
            "masks after the softmax",
            changed(
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
            changed(_ATTEND, "weights = scores.masked_fill(future, -math.inf).softmax(-1)\n", "")
            .replace('scores = torch.einsum("qhd,khd->hqk", q, k)', _PAST_SCORES)
            .replace("weights, v), k, v", "scores.softmax(-1), past_v), k, v"),
            "see the kept ones and not themselves",
        ),
        WrongFill(
            "masks from zero",
            changed(_ATTEND, "triu(known - new + 1)", "triu(1)"),
            "further to the right",
        ),
        WrongFill(
            "sees the future",
            changed(_ATTEND, "scores.masked_fill(future, -math.inf)", "scores"),
            "a prompt comes all at once",
        ),
        WrongFill(
            "keeps the new ones alone",
            changed(_ATTEND, "weights, v), k, v", "weights, v), k[-new:], v[-new:]"),
            "what you give back to keep",
        ),
        WrongFill(
            "forgets the root",
            changed(_ATTEND, " / math.sqrt(q.shape[2])", ""),
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
            changed(_SLOTS, "range(start, start + count)", "range(count)"),
            "you would write over them",
        ),
        WrongFill(
            "swaps block and place",
            changed(
                _SLOTS,
                "table[p // block_size] * block_size + p % block_size",
                "table[p % block_size] * block_size + p // block_size",
            ),
            "the other way round",
        ),
        WrongFill(
            "takes blocks for slots",
            changed(_SLOTS, "] * block_size +", "] +"),
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
            changed(_ABSORB, "(best - better).exp()", "1.0"),
            "you add the new tile to the old sums as they are",
        ),
        WrongFill(
            "shrinks the weights alone",
            changed(_ABSORB, "found * shrink", "found"),
            "not the sum of weighted values",
        ),
        WrongFill(
            "takes the tile's own best",
            changed(
                _ABSORB,
                "torch.maximum(best, scores.amax(1, keepdim=True))",
                "scores.amax(1, keepdim=True)",
            ),
            "that of the new tile alone",
        ),
        WrongFill(
            "normalises each tile",
            changed(_ABSORB, "(scores - better).exp()", "(scores - better).softmax(1)"),
            "you divide by the tile's own sum",
        ),
    ),
    5: (
        WrongFill(
            "sees the padding",
            changed(_PAGED, "scores.masked_fill(behind[:, None], -math.inf)", "scores"),
            "what stands behind their context",
        ),
        WrongFill(
            "masks whole blocks",
            changed(
                _PAGED,
                ">= contexts[:, None]",
                ">= (contexts + -contexts % block_size)[:, None]",
            ),
            "your mask ends with a block",
        ),
        WrongFill(
            "does not see itself",
            changed(_PAGED, ">= contexts[:, None]", ">= contexts[:, None] - 1"),
            "their own new token",
        ),
        WrongFill(
            "takes 0 for nothing", changed(_PAGED, "-math.inf", "0.0"), "so they still weigh"
        ),
        WrongFill(
            "takes blocks for slots",
            changed(_PAGED, " * block_size + torch", " + torch"),
            "block b begins at slot",
        ),
        WrongFill(
            "forgets the root",
            changed(_PAGED, " / math.sqrt(q.shape[2])", ""),
            "not divided by the square root",
        ),
    ),
}

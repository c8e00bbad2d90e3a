"""Who is chosen for one row, found by every program that needs it, and lines of all who are.

Invariant: experts and weights are those of routing.py, from the same scores, of 16 bits: of equal
ones the lowest expert comes first, and those that are no numbers choose different experts.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, assignment"
# mypy: disable-error-code="var-annotated, attr-defined"

import triton
import triton.language as tl


@triton.jit
def _keys(scores_ptr, E: tl.constexpr, BLOCK_E: tl.constexpr):
    """A number for each expert, all different: greater for greater scores, of equal ones for the
    lower expert; least where a score is no number. And what exp(score - the largest) sums up to."""
    e = tl.arange(0, BLOCK_E)
    # From L2: who has not waited might see what its multiprocessor held of another step.
    scores = tl.load(scores_ptr + e, mask=e < E, other=float("-inf"), cache_modifier=".cg")
    bits = (scores + 0.0).to(tl.int16, bitcast=True).to(tl.int32)
    order = tl.where(scores == scores, bits ^ ((bits >> 31) & 0x7FFF), -32768)
    keys = tl.where(e < E, order * 1024 + (1023 - e), -(1 << 30))
    largest = _score(tl.max(keys, 0), scores_ptr.dtype.element_ty)
    return keys, tl.sum(tl.exp(scores.to(tl.float32) - largest), 0)


@triton.jit
def _score(key, kind: tl.constexpr):
    """The score of an expert by its key, in fp32."""
    order = key >> 10
    bits = (order ^ ((order >> 31) & 0x7FFF)).to(tl.int16)
    return bits.to(kind, bitcast=True).to(tl.float32)


@triton.jit
def _next(keys):
    """The best of those that are left, and what is left then."""
    best = tl.max(keys, 0)
    return best, tl.where(keys == best, -(1 << 30), keys)


@triton.jit
def expert_at(scores_ptr, slot, E: tl.constexpr, BLOCK_E: tl.constexpr):
    """The expert that comes in a place."""
    keys, _ = _keys(scores_ptr, E, BLOCK_E)
    best, keys = _next(keys)
    for _ in range(slot):
        best, keys = _next(keys)
    return 1023 - (best & 1023)


@triton.jit
def _all_chosen(
    scores_ptr, E: tl.constexpr, BLOCK_E: tl.constexpr, PER_TOKEN: tl.constexpr,
    RENORMALISE: tl.constexpr,
):  # fmt: skip
    """The experts, and their weights."""
    keys, total = _keys(scores_ptr, E, BLOCK_E)
    experts = ()
    shares = ()
    taken = 0.0
    largest = 0.0
    for slot in tl.static_range(PER_TOKEN):
        best, keys = _next(keys)
        score = _score(best, scores_ptr.dtype.element_ty)
        if slot == 0:
            largest = score
        share = tl.exp(score - largest) / total
        taken += share
        experts = experts + (1023 - (best & 1023),)  # noqa: RUF005 (what Triton reads)
        shares = shares + (share,)  # noqa: RUF005
    weights = ()
    for slot in tl.static_range(PER_TOKEN):
        weight = shares[slot]
        if RENORMALISE:
            weight = weight / taken
        weights = weights + (weight,)  # noqa: RUF005
    return experts, weights


@triton.jit
def _spread(values, slot, zero, COUNT: tl.constexpr):
    """The value of each one's slot."""
    out = slot * zero
    for s in tl.static_range(COUNT):
        out = tl.where(slot == s, values[s], out)
    return out


@triton.jit
def experts_of_pieces(
    scores_ptr, E: tl.constexpr, BLOCK_E: tl.constexpr, PER_TOKEN: tl.constexpr,
    RENORMALISE: tl.constexpr, PIECES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """For all chosen experts, PIECES pieces each, in chunks of LANES: each piece's expert and its
    weight, [LANES] per chunk."""
    chosen, weights = _all_chosen(scores_ptr, E, BLOCK_E, PER_TOKEN, RENORMALISE)
    experts = ()
    of = ()
    for c in tl.static_range((PER_TOKEN * PIECES + LANES - 1) // LANES):
        slot = (c * LANES + tl.arange(0, LANES)) // PIECES
        experts = experts + (_spread(chosen, slot, 0, PER_TOKEN),)  # noqa: RUF005
        of = of + (_spread(weights, slot, 0.0, PER_TOKEN),)  # noqa: RUF005
    return experts, of


@triton.jit
def load_downs(
    w_ptr, first, end, experts, N, K: tl.constexpr, PIECE: tl.constexpr, SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr, LANES: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """Lines [first, first + BLOCK_N) of all experts taken, side by side: tiles [BLOCK_N, LANES,
    SIZE], of K / PIECE pieces of SIZE elements an expert. experts: of each chunk, [LANES]."""
    n = first + tl.arange(0, BLOCK_N)
    PIECES: tl.constexpr = K // PIECE
    CHUNKS: tl.constexpr = (COUNT * PIECES + LANES - 1) // LANES
    w = ()
    for c in tl.static_range(CHUNKS):
        piece = c * LANES + tl.arange(0, LANES)
        line = experts[c].to(tl.int64)[None, :] * N + n[:, None]
        at = line[:, :, None] * (PIECES * SIZE) + ((piece % PIECES) * SIZE)[None, :, None]
        ok = (n < end)[:, None, None]
        if (c + 1) * LANES > COUNT * PIECES:
            ok = ok & (piece < COUNT * PIECES)[None, :, None]
        tile = tl.load(w_ptr + at + tl.arange(0, SIZE)[None, None, :], mask=ok, other=0)
        w = w + (tile,)  # noqa: RUF005
    return w

"""The sum of all ranks' partial products, the residual and RMSNorm, as one kernel a rank.

Each rank writes its partial into the inboxes of its peers, whose memory it reaches, and waits at
its own until all have come. One shot: everybody gets every row and adds it up. Two shots, for many
rows: each row has an owner, who adds it up and gives all the new residual. A word that has not come
is known by its bits (Lamport, 1977), so nothing is signalled beside the data.

Invariant: every rank gets the same bits. The sum is taken in rank order in fp32, the residual is
added and rounded once, and the norm is taken of what was rounded. A word of an inbox is EMPTY until
its sender has written it, and again once it was read. Which of an inbox's two halves is in use is
counted on the device, row by row, by all launches whatever graph they stand in; nothing is written
before the kernel ahead has ended. So who writes a half for the second time knows that it was read:
he has since got what its reader sent after reading. A wait that is too long leaves EMPTY words,
which are NaN, and raises a flag in memory of the host; those behind it then do not wait at all.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait, globaltimer

DTYPES = (torch.bfloat16, torch.float16)
SPIN_SECONDS = 600.0  # longer than a watchdog waits for a step
WORD = 4  # bytes: two numbers
EMPTY = tl.constexpr(-1)  # two NaNs with all bits set
_ANOTHER_NAN = tl.constexpr(0x7FFF7FFF)
_TWO_SHOTS_FROM = 64  # rows, where there are more than two ranks
_ONE_SHOT_ROOM, _TWO_SHOT_ROOM = 512, 1024  # rows a launch
_WARPS = 16
_TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _low(words, T: tl.constexpr):
    if tl.bfloat16 == T:
        return (words << 16).to(tl.float32, bitcast=True)
    return (words & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _high(words, T: tl.constexpr):
    if tl.bfloat16 == T:
        return (words & -65536).to(tl.float32, bitcast=True)
    return (words >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _packed(low, high, T: tl.constexpr):
    first = low.to(T).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return first | (high.to(T).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def _inbox(table, rank):
    """A rank's inbox, as this rank reaches it."""
    return tl.multiple_of(tl.load(table + rank).to(tl.pointer_type(tl.int32)), 16)


@triton.jit
def _sent(words):
    """As it goes into an inbox: never EMPTY."""
    return tl.where(words == EMPTY, _ANOTHER_NAN, words)


@triton.jit
def _taken(places, mask, limit, TIMED: tl.constexpr):
    """The words of an inbox once all are there, or `limit` nanoseconds later those that are."""
    start = globaltimer() if TIMED else 0
    got = tl.load(places, mask=mask, other=0, volatile=True)
    missing = tl.max((got == EMPTY).to(tl.int32))
    while missing != 0:
        got = tl.load(places, mask=mask, other=0, volatile=True)
        missing = tl.max((got == EMPTY).to(tl.int32))
        if TIMED:
            missing = tl.where(globaltimer() - start > limit, 0, missing)
    tl.store(places, tl.full(got.shape, EMPTY, tl.int32), mask=mask)
    return got


@triton.jit
def _limit(counts, limit, ROOM: tl.constexpr):
    """No time at all where a wait before this one has been too long."""
    return tl.where(tl.load(counts + ROOM) != 0, 0, limit)


@triton.jit
def _raise_flag(got, counts, table, WORLD: tl.constexpr, ROOM: tl.constexpr):
    """On the device and for the host, where words have not come."""
    late = tl.max((got == EMPTY).to(tl.int32)) != 0
    flag = tl.load(table + WORLD).to(tl.pointer_type(tl.int32))
    tl.store(counts + ROOM, 1, mask=late)
    tl.store(flag, 1, mask=late)


@triton.jit
def _summed(got, before, T: tl.constexpr, WORLD: tl.constexpr, ADDS: tl.constexpr):
    """got: [WORLD, BLOCK] words; before: the residual's, [BLOCK] -> the new residual's, [BLOCK]."""
    ranks = tl.arange(0, WORLD)
    first = tl.sum(tl.where(ranks[:, None] == 0, got, 0), 0)
    low, high = _low(first, T), _high(first, T)
    for p in tl.static_range(1, WORLD):
        words = tl.sum(tl.where(ranks[:, None] == p, got, 0), 0)
        low += _low(words, T)
        high += _high(words, T)
    if ADDS:
        low += _low(before, T)
        high += _high(before, T)
    return _packed(low, high, T)


@triton.jit
def _norm(words, by, eps, H, T: tl.constexpr):
    """RMSNorm of a row of H numbers, weighted. words, by: [BLOCK]."""
    low, high = _low(words, T), _high(words, T)
    scale = 1.0 / tl.sqrt(tl.sum(low * low + high * high, 0) / H + eps)
    return _packed(low * scale * _low(by, T), high * scale * _high(by, T), T)


@triton.jit(do_not_specialize=["rank", "limit"])
def _one_shot_kernel(
    partial,  # [rows, W] words, as all that follow
    residual,  # [rows, W], not looked at without ADDS
    weight,  # [W]
    out,  # [rows, W]: the new residual, may be the old one's memory
    normed,  # [rows, W]
    table,  # [WORLD + 1] int64: addresses of inboxes by rank, and of the host's flag
    counts,  # [ROOM + 1] int32: exchanges of each row so far, and whether a wait was too long
    rank,
    eps,
    limit,  # nanoseconds of a wait
    W: tl.constexpr,  # words a row
    BLOCK: tl.constexpr,  # W, rounded up to a power of two
    WORLD: tl.constexpr,  # ranks, a power of two
    ROOM: tl.constexpr,  # rows of an inbox: [2, WORLD, ROOM, W]
    T: tl.constexpr,  # what two of make a word
    ADDS: tl.constexpr,  # whether there is a residual
    PDL: tl.constexpr,
    TIMED: tl.constexpr,
    SENDS: tl.constexpr,  # tests take the halves apart
    RECEIVES: tl.constexpr,
):
    """grid (rows,), at most ROOM."""
    row = tl.program_id(0)
    cols, ranks = tl.arange(0, BLOCK), tl.arange(0, WORLD)
    mask = cols < W
    at = row.to(tl.int64) * W + cols
    by = tl.load(weight + cols, mask=mask, other=0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    count = tl.load(counts + row)
    half = (count & 1).to(tl.int64) * WORLD * ROOM * W
    if SENDS:
        words = _sent(tl.load(partial + at, mask=mask, other=0))
        for p in tl.static_range(WORLD):
            inbox = _inbox(table, p)
            tl.store(inbox + half + (rank * ROOM + row).to(tl.int64) * W + cols, words, mask=mask)
    if RECEIVES:
        before = tl.load(residual + at, mask=mask, other=0) if ADDS else by  # asked for early
        mine = _inbox(table, rank)
        places = mine + half + ((ranks * ROOM + row).to(tl.int64) * W)[:, None] + cols[None, :]
        every = mask[None, :] & (ranks[:, None] < WORLD)
        got = _taken(places, every, _limit(counts, limit, ROOM), TIMED)
        _raise_flag(got, counts, table, WORLD, ROOM)
        words = _summed(got, before, T, WORLD, ADDS)
        tl.store(out + at, words, mask=mask)
        tl.store(normed + at, _norm(words, by, eps, 2 * W, T), mask=mask)
        tl.store(counts + row, count + 1)


@triton.jit(do_not_specialize=["rank", "limit"])
def _two_shot_kernel(
    partial,  # see _one_shot_kernel
    residual,
    weight,
    out,
    normed,
    table,
    counts,
    rank,
    eps,
    limit,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
    WORLD: tl.constexpr,
    ROOM: tl.constexpr,  # of an inbox: [2, WORLD, ROOM / WORLD, W] for owners, and [2, ROOM, W]
    T: tl.constexpr,
    ADDS: tl.constexpr,
    PDL: tl.constexpr,
    TIMED: tl.constexpr,
    SENDS: tl.constexpr,
    ADDS_UP: tl.constexpr,
    RECEIVES: tl.constexpr,
):
    """grid (rows,), at most ROOM. Row r is owned by rank r modulo WORLD."""
    row = tl.program_id(0)
    cols, ranks = tl.arange(0, BLOCK), tl.arange(0, WORLD)
    mask = cols < W
    at = row.to(tl.int64) * W + cols
    owner, place = row % WORLD, row // WORLD
    SHARE: tl.constexpr = ROOM // WORLD
    by = tl.load(weight + cols, mask=mask, other=0)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    count = tl.load(counts + row)
    half = count & 1
    allowed = _limit(counts, limit, ROOM)
    mine = _inbox(table, rank)
    theirs = ((2 * ROOM + half * ROOM + row).to(tl.int64)) * W + cols
    if SENDS:
        words = _sent(tl.load(partial + at, mask=mask, other=0))
        inbox = _inbox(table, owner)
        line = ((half * WORLD + rank) * SHARE + place).to(tl.int64)
        tl.store(inbox + line * W + cols, words, mask=mask)
    if ADDS_UP and owner == rank:
        before = tl.load(residual + at, mask=mask, other=0) if ADDS else by
        lines = ((half * WORLD + ranks) * SHARE + place).to(tl.int64) * W
        every = mask[None, :] & (ranks[:, None] < WORLD)
        got = _taken(mine + lines[:, None] + cols[None, :], every, allowed, TIMED)
        _raise_flag(got, counts, table, WORLD, ROOM)
        words = _sent(_summed(got, before, T, WORLD, ADDS))
        for p in tl.static_range(WORLD):
            inbox = _inbox(table, p)
            tl.store(inbox + theirs, words, mask=mask)
    if RECEIVES:
        words = _taken(mine + theirs, mask, allowed, TIMED)
        _raise_flag(words, counts, table, WORLD, ROOM)
        tl.store(out + at, words, mask=mask)
        tl.store(normed + at, _norm(words, by, eps, 2 * W, T), mask=mask)
        tl.store(counts + row, count + 1)


@dataclass(frozen=True, slots=True)
class Inboxes:
    """What one kind of exchange needs. table, counts: see the kernels. room: rows a launch."""

    rank: int
    size: int
    room: int
    table: Tensor
    counts: Tensor

    @classmethod
    def new(cls, rank: int, room: int, addresses: list[int], flag: int, device: Any) -> "Inboxes":
        """addresses: of all ranks' inboxes, as this one reaches them; flag: the host's."""
        table = torch.tensor([*addresses, flag], dtype=torch.int64, device=device)
        counts = torch.zeros(room + 1, dtype=torch.int32, device=device)
        return cls(rank, len(addresses), room, table, counts)


@dataclass(frozen=True, slots=True)
class Mail:
    """The inboxes of both kinds."""

    one: Inboxes
    two: Inboxes


def outline(size: int) -> Mail:
    """A Mail for meta tensors, on which nothing is launched."""
    meta = torch.device("meta")
    one, two = (Inboxes.new(0, room, [0] * size, 0, meta) for room in rooms(size))
    return Mail(one, two)


def rooms(size: int) -> tuple[int, int]:
    """Rows that one launch of each kind takes."""
    return (_ONE_SHOT_ROOM if size == 2 else _TWO_SHOTS_FROM), _TWO_SHOT_ROOM


def inbox_words(size: int, width: int) -> tuple[int, int]:
    """Words of a rank's inbox of each kind. width: numbers a row, even."""
    one, two = rooms(size)
    words = width // 2
    return 2 * size * one * words, 4 * two * words


def kind(rows: int, size: int) -> str:
    """The name of the kernel for this many rows."""
    return "one-shot" if rows <= rooms(size)[0] else "two-shot"


def residual_norm(
    partial: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    mail: Mail,
    *,
    pdl: bool = False,
    **parts: bool,
) -> tuple[Tensor, Tensor]:
    """partial: [T, H], this rank's; residual: [T, H], whose storage is reused, None: zeros;
    weight: [H]; all of one dtype of DTYPES, contiguous -> the residual plus the sum of all ranks'
    partials, and its RMSNorm, [T, H] each.

    All ranks call it alike, in one order. parts: see the kernels; for tests, one launch alone.
    """
    rows, width = partial.shape
    out = torch.empty_like(partial) if residual is None else residual.contiguous()
    normed = torch.empty_like(partial)
    sent, whole, norm = (x.view(torch.int32) for x in (partial.contiguous(), out, normed))
    one_shot = rows <= mail.one.room
    kernel, inboxes = (_one_shot_kernel, mail.one) if one_shot else (_two_shot_kernel, mail.two)
    names = ("SENDS", "RECEIVES") if one_shot else ("SENDS", "ADDS_UP", "RECEIVES")
    for first in range(0, rows, inboxes.room):
        some = slice(first, first + inboxes.room)
        kernel[(min(rows - first, inboxes.room),)](
            sent[some],
            whole[some],
            weight.view(torch.int32),
            whole[some],
            norm[some],
            inboxes.table,
            inboxes.counts,
            inboxes.rank,
            eps,
            int(SPIN_SECONDS * 1e9),
            W=width // 2,
            BLOCK=triton.next_power_of_2(width // 2),
            WORLD=inboxes.size,
            ROOM=inboxes.room,
            T=_TYPES[partial.dtype],
            ADDS=residual is not None,
            PDL=pdl,
            TIMED=partial.device.type != "cpu",  # the interpreter has no timer
            **(dict.fromkeys(names, True) | parts),
            num_warps=_WARPS,
            launch_pdl=pdl,
        )
    return out, normed

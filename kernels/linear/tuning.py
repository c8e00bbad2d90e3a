"""Which kernel computes a product: a table by weight shape and rows, and a rule for the rest.

Invariant: every (shape, rows) has an answer that runs. The tables (`tables/`, each written by
tools/tune_linear.py on the card that it names) hold measurements. A shape that the card's own table
lacks is looked up in another card's; a rank's share of a measured shape takes the result for the
whole. The rule covers what was not measured, and what does not fit a smaller card. The choice is a
pure function of the shape, the rows, the dtype, the card's name and its shared memory.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quire.kernels.support import HOME_CARD, HOPPER_SHARED

ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SIDE_ROWS = 16  # that side.py, stacked.py and whole.py take
STACK = 64  # rows of a matrix instruction: weight rows times shares of stacked.py
_EXACT_ROWS = 4  # that gemv.py takes, each number of rows by a kernel compiled for it
_WEIGHT_ALONE = 120 << 20  # bytes
_RANKS = (2, 4, 8)  # degrees of tensor parallelism whose shares are looked up
TABLES = Path(__file__).with_name("tables")
HOME = HOME_CARD  # the card whose table is asked first where there is no card


@dataclass(frozen=True)
class Gemv:
    """The kernel of gemv.py: weight rows a program, warps a program."""

    block_n: int
    warps: int


@dataclass(frozen=True)
class Skinny:
    """The kernel of skinny.py. tiles: of block_n weight rows, 1 to 3, that a program multiplies by
    the same x. fuse_norm: a norm before the product is computed inside it."""

    block_m: int
    block_n: int
    block_k: int
    swap: bool
    stages: int
    warps: int
    tiles: int = 1
    split: int = 1
    fuse_norm: bool = False
    prefetch: bool = False

    @property
    def stage_bytes(self) -> int:
        """Shared memory of one stage: x and the weights, 16 bits each."""
        return (self.block_m + self.tiles * self.block_n) * self.block_k * 2


@dataclass(frozen=True)
class Library:
    """torch's own product (cuBLAS), with norm and activation as kernels of their own. split: where
    there is a residual, shares of K, multiplied side by side and added to it by our kernel. joins:
    in exact mode too a residual joins a product of one share in it, not behind it, where no rows
    pad it."""

    split: int = 1
    joins: bool = False


@dataclass(frozen=True)
class Side:
    """The kernel of side.py, of up to 16 rows: a program's warps, one for each of `split` shares of
    K, multiply side by side. hold: all its weights are loaded before the kernel ahead has ended, in
    as many steps of a share as there are stages. early: what follows is launched before that."""

    block_n: int
    block_k: int
    stages: int
    split: int
    prefetch: bool = False
    hold: bool = False
    early: bool = False

    @property
    def stage_bytes(self) -> int:
        """Shared memory of one stage: x, up to 16 rows, and the weights, 16 bits each."""
        return self.split * (SIDE_ROWS + self.block_n) * self.block_k * 2


@dataclass(frozen=True)
class Whole:
    """The kernel of whole.py, of up to 16 rows: a program loads all K of block_n weight rows before
    the kernel ahead has ended, in stages * block_k columns, and has a norm inside. early: of
    Side."""

    block_n: int
    block_k: int
    stages: int
    warps: int
    early: bool = False

    @property
    def split(self) -> int:
        """Shares of K."""
        return 1

    @property
    def stage_bytes(self) -> int:
        """Shared memory of one stage: x, up to 16 rows, and the weights, 16 bits each."""
        return (SIDE_ROWS + self.block_n) * self.block_k * 2


@dataclass(frozen=True)
class Stacked:
    """The kernel of stacked.py, of up to 16 rows: a program loads all K of STACK / split weight
    rows before the kernel ahead has ended, and has a norm inside where there is one share. block_k:
    of a share, all of it; early: of Side."""

    block_k: int
    split: int
    early: bool = False

    @property
    def stages(self) -> int:
        """All at once."""
        return 1

    @property
    def stage_bytes(self) -> int:
        """Shared memory: x, up to 16 rows, and the weights, 16 bits each."""
        return (SIDE_ROWS * self.split + STACK) * self.block_k * 2


@dataclass(frozen=True)
class Tall:
    """The kernel of tall.py, of many rows: a program sums the shares of K one after another. group:
    tiles of rows whose programs follow one another, as they read the same weights."""

    block_m: int
    block_n: int
    block_k: int
    stages: int
    warps: int
    split: int
    group: int = 16

    @property
    def stage_bytes(self) -> int:
        """Shared memory of one stage: x and the weights, 16 bits each."""
        return (self.block_m + self.block_n) * self.block_k * 2


@dataclass(frozen=True)
class Boxed:
    """The kernel of boxed.py, of 33 to 64 rows, on cards with descriptors."""

    block_m: int
    block_n: int
    block_k: int
    stages: int
    warps: int
    split: int = 1

    @property
    def stage_bytes(self) -> int:
        """Shared memory of one stage: x and the weights, 16 bits each."""
        return (self.block_m + self.block_n) * self.block_k * 2


Tile = Skinny | Side | Whole | Stacked | Tall | Boxed
Variant = Gemv | Library | Tile
Table = Mapping[tuple[int, int], Mapping[int, Variant]]
_KINDS: dict[str, type[Variant]] = {
    "gemv": Gemv,
    "skinny": Skinny,
    "library": Library,
    "side": Side,
    "whole": Whole,
    "stacked": Stacked,
    "tall": Tall,
    "boxed": Boxed,
}


def to_json(variant: Variant) -> dict[str, Any]:
    """A variant as the table's JSON writes it."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(variant, cls))
    return {"kind": kind} | asdict(variant)


def from_json(fields: dict[str, Any]) -> Variant:
    """The inverse of `to_json`. Raises KeyError or TypeError for what it does not know."""
    rest = dict(fields)
    return _KINDS[rest.pop("kind")](**rest)


@dataclass(frozen=True)
class ExactRows:
    """What a table says of a weight whose K is summed in one number of shares: the best launch by
    buckets of rows (see exact.py)."""

    split: int
    rows: Mapping[int, Variant]


@dataclass(frozen=True)
class Timings:
    """Microseconds of a weight's products by buckets of rows: of the best launch, and of the best
    in one order of sums."""

    free: Mapping[int, float]
    exact: Mapping[int, float]

    def at(self, bucket: int) -> tuple[float, float] | None:
        """Both, or None where the table does not tell."""
        if bucket not in self.free or bucket not in self.exact:
            return None
        return self.free[bucket], self.exact[bucket]


@cache
def tables() -> Mapping[str, Table]:
    """The checked-in tables by card, each {(N, K): {rows bucket: variant}}."""
    found: dict[str, Table] = {}
    for path in sorted(TABLES.glob("*.json")):
        document = json.loads(path.read_text())
        found[document["measured_on"]["machine"]["gpu"]] = {
            (entry["n"], entry["k"]): {int(r): from_json(v) for r, v in entry["rows"].items()}
            for entry in document["shapes"]
        }
    return found


@cache
def table(card: str = HOME) -> Table:
    """What is known for a card: its own table over the others', of which kernels that hold weights
    ahead are left out, as they were only measured there."""
    own = measured_card(card)
    shapes: dict[tuple[int, int], Mapping[int, Variant]] = {}
    for name in sorted(tables(), key=lambda name: name == (own or HOME)):
        for shape, rows in tables()[name].items():
            shapes[shape] = {
                bucket: variant
                for bucket, variant in rows.items()
                if name == own or not isinstance(variant, Side | Whole | Stacked)
            }
    return shapes


@cache
def exact_table(card: str = HOME) -> Mapping[tuple[int, int], ExactRows]:
    """What a card's own table says of exact launches; those of another card decide nothing."""
    return {
        (entry["n"], entry["k"]): ExactRows(
            entry["exact"]["split"],
            {int(rows): from_json(v) for rows, v in entry["exact"]["rows"].items()},
        )
        for entry in _own_shapes(card)
        if "exact" in entry
    }


@cache
def timings(card: str = HOME) -> Mapping[tuple[int, int], Timings]:
    """The times of a card's own table."""
    return {
        (entry["n"], entry["k"]): Timings(
            *({int(r): us for r, us in entry["exact"][k].items()} for k in ("free_us", "us"))
        )
        for entry in _own_shapes(card)
        if "exact" in entry
    }


def _own_shapes(card: str) -> list[dict[str, Any]]:
    for path in sorted(TABLES.glob("*.json")):
        document = json.loads(path.read_text())
        if _alike(document["measured_on"]["machine"]["gpu"], card):
            shapes: list[dict[str, Any]] = document["shapes"]
            return shapes
    return []


@cache
def version() -> str:
    """Eight hex digits that name all tables."""
    digest = hashlib.sha256()
    for path in sorted(TABLES.glob("*.json")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def measured_card(card: str) -> str:
    """The name in the own table of a card, or nothing where it has none: all those are alike."""
    return next((name for name in tables() if _alike(name, card)), "")


def _alike(name: str, card: str) -> bool:
    """Whether two names mean one chip: "NVIDIA H100 80GB HBM3" and "NVIDIA H100 PCIe" do."""
    return name.split()[:2] == card.split()[:2]


def choose(
    n: int,
    k: int,
    rows: int,
    dtype: torch.dtype,
    silu: bool,
    shared: int = HOPPER_SHARED,
    card: str = HOME,
) -> Variant:
    """The variant for a weight [n, k] (with silu: gate and up rows together) and so many rows.

    shared: bytes of shared memory that a program may have (`support.shared_bytes`).
    card: its name (`support.card_name`)."""
    if dtype == torch.float32 or rows > ROW_BUCKETS[-1]:
        return Library()
    bucket = next(b for b in ROW_BUCKETS if rows <= b)
    listed = _listed(n, k, bucket, card)
    if listed and fits(listed, shared):
        return listed
    variant = rule(n, k, bucket, silu)
    if isinstance(variant, Skinny) and not fits(variant, shared):
        return replace(variant, stages=shared // variant.stage_bytes)
    return variant


def _listed(n: int, k: int, bucket: int, card: str) -> Variant | None:
    """What was measured of a shape, or of the smallest one of which it may be a rank's share. What
    holds all of K ahead was made for as many columns as the measured shape has."""
    shapes = table(card)
    wholes = ((n * parts, k * shares) for p in _RANKS for parts, shares in ((p, 1), (1, p)))
    for whole in ((n, k), *wholes):
        found = shapes.get(whole, {}).get(bucket)
        if found is not None and (whole[1] == k or not isinstance(found, Side | Whole | Stacked)):
            return found
    return None


@cache
def row_class(rows: int) -> int:
    """A number that two counts of rows share if every weight takes one kernel for both."""
    if rows <= _EXACT_ROWS:  # each a kernel of its own
        return rows
    return next((bucket for bucket in ROW_BUCKETS if rows <= bucket), ROW_BUCKETS[-1] + 1)


def fits(variant: Variant, shared: int) -> bool:
    """Whether a card of so much shared memory a program can run a variant."""
    if isinstance(variant, Boxed) and shared < HOPPER_SHARED:
        return False  # as before Hopper, where nothing knows descriptors
    return not isinstance(variant, Tile) or variant.stages * variant.stage_bytes <= shared


def chains(weight: Tensor, rows: int) -> bool:
    """Whether a product is launched as a dependent of the kernel before. It loses where programs
    that wait hold slots of a kernel that still has the memory busy."""
    return rows > 1 or weight.nbytes <= _WEIGHT_ALONE


def rule(n: int, k: int, bucket: int, silu: bool) -> Variant:
    """What to use where nothing was measured, in the spirit of what was."""
    if bucket == 1 and k <= 8192 and k % 8 == 0:
        return _gemv(k, silu)
    if bucket == 2 and n * k <= 4 << 20 and k % 8 == 0 and not silu:
        return _gemv(k, silu)
    if bucket > 64 or k % 8:
        return Library()
    block_m = max(16, bucket)
    if n <= 2048 and k >= 2048:
        if bucket <= 16:
            return Skinny(16, 32, 128, swap=False, stages=4, warps=4, split=4)
        return Skinny(min(block_m, 32), 64, 128, swap=True, stages=4, warps=4, split=4)
    split = 2 if n <= 6144 and k >= 4096 and not silu else 1
    return Skinny(block_m, 64, 128, swap=True, stages=4, warps=4, split=split)


def _gemv(k: int, silu: bool) -> Gemv:
    """Two weight rows a program while they fit its registers."""
    for block_n, warps in ((2, 4), (2, 8), (1, 8)):
        if block_n * k * (2 if silu else 1) <= 64 * 32 * warps:
            return Gemv(block_n, warps)
    return Gemv(1, 16)

"""Which kernels a step launches, told from its sizes: the list that warm-up is made from.

Invariant: two launches have one name exactly if one compiled kernel serves both, given a model, its
data type, a card, and how many slots and how long a model there are; all of those are fixed while
an engine lives. What is not a size of the step (alignments, whether an integer is 1 or a multiple
of 16) is the same in every step: kernels are told not to specialise on what is not.

The names are plain values: another process that holds the list can compile from it.
"""

from dataclasses import dataclass

from quire.kernels.attention import decode_launch, exact_prefill, prefill_launch, qk_norm_rope
from quire.kernels.attention.decode_launch import Heads
from quire.kernels.experts import mixing
from quire.kernels.linear import all_reduce_norm, tall_launch, tuning
from quire.kernels.support import HOPPER_SHARED

Name = tuple[object, ...]


@dataclass(frozen=True)
class Card:
    """What of a GPU decides. shared: bytes of shared memory a program may have."""

    hopper: bool = True
    shared: int = HOPPER_SHARED


@dataclass(frozen=True)
class Mixture:
    """Experts of a model: how many there are, and how many a token takes."""

    count: int
    per_token: int


@dataclass(frozen=True)
class StepSize:
    """A step's sizes. decode_rows: rows of one token; longer: tokens of each other row;
    max_context_len: bound of the contexts."""

    decode_rows: int
    longer: tuple[int, ...]
    max_context_len: int

    @property
    def rows(self) -> int:
        return self.decode_rows + len(self.longer)

    @property
    def tokens(self) -> int:
        return self.decode_rows + sum(self.longer)


def of_model(
    step: StepSize,
    heads: Heads,
    card: Card,
    *,
    qk_norm: bool = True,
    mixture: Mixture | None = None,
    ranks: int = 1,
    exact: bool = False,
) -> set[Name]:
    """The kernels of embedding to logits, all rows sampling. qk_norm: whether the model norms q and
    k; where it does not, PyTorch rotates them and writes the cache, which needs no compiling.
    mixture: None in a dense model. ranks: that share the model, and add up what they have. exact:
    of exact mode, where products of other rows than these are the library's, or tiles that were
    launched when the card was asked for their bits."""
    names: set[Name] = {
        ("product", tuning.row_class(step.tokens)),
        ("logits", tuning.row_class(step.rows)),
        ("prepare", bool(step.longer)),
    }
    if card.hopper:
        names |= tall_launch.kernels(step.tokens)
    if mixture is not None:
        alone = step.tokens == ranks == 1 and not exact  # one_row.py, where it takes them
        kernels = mixing.kernels(step.tokens, mixture.per_token, mixture.count)
        names.add(("experts", alone, *kernels))
    if ranks > 1:
        names.add(("exchange", all_reduce_norm.kind(step.tokens, ranks)))
    if step.decode_rows:
        decode = decode_launch.kernels(
            *(step.decode_rows, heads, step.max_context_len),
            alone=not step.longer,
            hopper=card.hopper,
            shared=card.shared,
            exact=exact,
        )
        names |= {("decode", *name) for name in decode}
    if not step.longer:
        return names
    if qk_norm:
        shape = qk_norm_rope.launch_shape(sum(step.longer), heads.q_heads, heads.kv_heads)
        names.add(("rope", *shape))
    longer = (exact_prefill if exact else prefill_launch).kernels(
        sum(step.longer),
        len(step.longer),
        heads,
        max(step.longer),
        step.max_context_len,
        card.shared,
    )
    return names | {("prefill", *name) for name in longer}

"""Which rank computes which part of a layer (Shoeybi et al., 2019, "Megatron-LM"), and what is
exchanged.

Invariant: the shards of all ranks together are the whole layer, and each rank can compute its own
from (rank, size) alone. With one rank every shard is the whole and nothing is exchanged. Rows of a
weight are outputs, its columns are inputs. A sum over ranks is taken in rank order from everybody's
part, in fp32, so every rank gets the same bits: a library's own reduction promises no order.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeGuard

from torch import Tensor

from quire.engine.errors import ConfigError

if TYPE_CHECKING:  # needs triton, which a machine without a GPU may lack
    from quire.kernels.linear.all_reduce_norm import Mail


class Exchange(Protocol):
    """How ranks exchange tensors. All of them must make the same calls in the same order."""

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's x, in rank order. x: [...], of one shape and dtype on all ranks; the
        result: [size, ...]."""
        ...


class MailExchange(Exchange, Protocol):
    """An exchange between ranks that can access each other's memory, at least for some tensors."""

    def mail_for(self, partial: Tensor) -> "Mail | None":
        """What the kernel that sums such partials needs, or None; the same on all ranks."""
        ...

    def check(self) -> None:
        """Raises RankError if a kernel has given up waiting for a rank."""
        ...


def has_mail(exchange: Exchange) -> TypeGuard[MailExchange]:
    """Whether an exchange is of that kind."""
    return hasattr(exchange, "mail_for")


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among those that share the model.

    exchange: needed where there are several and something is computed; shards need none.
    """

    rank: int = 0
    size: int = 1
    exchange: Exchange | None = None

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"tensor_parallel_size = {self.size}: must be at least 1")
        if not 0 <= self.rank < self.size:
            raise ConfigError(f"rank = {self.rank}: must be from 0 to {self.size - 1}")

    # ------------------------------------------------------------ shards

    def split(self, total: int, what: str) -> slice:
        """This rank's equal part of `total` rows or columns. Raises ConfigError if none exists."""
        if total % self.size:
            raise ConfigError(
                f"tensor_parallel_size = {self.size}: must divide the model's {what} = {total}"
            )
        part = total // self.size
        return slice(self.rank * part, (self.rank + 1) * part)

    def split_kv_heads(self, heads: int, what: str) -> slice:
        """Like `split`; with fewer heads than ranks, neighbours hold the same head."""
        if heads >= self.size:
            return self.split(heads, what)
        if self.size % heads:
            raise ConfigError(
                f"tensor_parallel_size = {self.size}: must be a multiple of the model's "
                f"{what} = {heads}, or divide it"
            )
        head = self.rank * heads // self.size
        return slice(head, head + 1)

    def split_vocab(self, vocab_size: int) -> tuple[slice, int]:
        """This rank's ids, and how many rows its table has: the last ranks' are padded."""
        rows = -(-vocab_size // self.size)
        first = min(self.rank * rows, vocab_size)
        return slice(first, min(first + rows, vocab_size)), rows

    # ------------------------------------------------------------ exchange

    def check(self) -> None:
        """Raises RankError where an exchange that was enqueued has failed on the device."""
        if self.exchange is not None and has_mail(self.exchange):
            self.exchange.check()

    def sum(self, partial: Tensor) -> Tensor:
        """The sum of all ranks' partials, in their dtype."""
        return partial if self.size == 1 else self._sum(partial).to(partial.dtype)

    def add_partials(self, partial: Tensor, residual: Tensor) -> Tensor:
        """residual + the sum of all ranks' partials, rounded once to the residual's dtype."""
        return (residual + self._sum(partial)).to(residual.dtype)

    def gather_vocab(self, logits: Tensor, vocab_size: int) -> Tensor:
        """All ranks' logits side by side, padding cut off. [L, rows] -> [L, vocab_size]."""
        if self.size == 1:
            return logits
        side_by_side = self._gather(logits).transpose(0, 1).reshape(logits.shape[0], -1)
        return side_by_side[:, :vocab_size].contiguous()

    def beside(self, best: Tensor) -> Tensor:
        """All ranks' [2, L, C] side by side, in rank order: [2, L, size * C]."""
        return best if self.size == 1 else self._gather(best).permute(1, 2, 0, 3).flatten(2)

    def _sum(self, partial: Tensor) -> Tensor:
        first, *others = self._gather(partial).unbind(0)
        total = first.float()
        for other in others:
            total = total + other
        return total

    def _gather(self, x: Tensor) -> Tensor:
        if self.exchange is None:
            raise ConfigError(f"tensor_parallel_size = {self.size}: these ranks have no exchange")
        return self.exchange.gather(x)


def scale_slice(part: slice, by: int) -> slice:
    """A slice of rows for a slice of heads: each index of `part` stands for `by` rows."""
    return slice(part.start * by, part.stop * by)


def length(part: slice) -> int:
    """Indices in a slice with both ends."""
    return int(part.stop - part.start)

"""Token embedding and output head, each rank holding the rows of its own ids.

Invariant: rows beyond the vocabulary are zero and their logits never leave this file.
"""

import torch
from torch import Tensor

from quire.engine.model.layers.build_context import BuildContext
from quire.engine.model.layers.parallel import length
from quire.engine.model.layers.residual import ResidualStream, residual_norm
from quire.engine.model.layers.weight_formats import table_format
from quire.kernels.ops import Ops


class VocabTable:
    """A [vocabulary, hidden] matrix, this rank's ids of it. Serves as embedding, head, or both."""

    def __init__(
        self, context: BuildContext, module: str, vocab_size: int, hidden_size: int
    ) -> None:
        self._ops, self._world = context.ops, context.world
        self._vocab_size = vocab_size
        self.module = module
        self.ids, rows = context.world.split_vocab(vocab_size)
        fmt = table_format(context)
        table, mine = fmt.new(rows, hidden_size), length(self.ids)
        self.weight = fmt.operand(table)
        self.weight[mine:] = 0
        filled, shape = fmt.part(table, 0, mine, module), (vocab_size, hidden_size)
        self.placements = fmt.placements(module, shape, filled, self.ids, slice(0, hidden_size))

    def embed(self, token_ids: Tensor, then: Tensor, eps: float) -> ResidualStream:
        """[T] int32 -> [T, hidden]. then: the weight of the norm that follows.

        An ordinary launch, not a dependent one. Rotation and attention rely on that: they read what
        earlier launches have written (positions, contexts, tables, older tokens) without waiting
        again.
        """
        if self._world.size == 1:  # of a few rows far faster on a device than F.embedding
            return ResidualStream(self.weight[token_ids])
        return residual_norm(self._ops, self._world, self.embed_part(token_ids), None, then, eps)

    def rows(self, token_ids: Tensor) -> Tensor:
        """[T] int32 -> [T, hidden], for models whose norms are separate; launched as in `embed`."""
        if self._world.size == 1:
            rows: Tensor = self.weight[token_ids]
            return rows
        return self._world.sum(self.embed_part(token_ids))

    def embed_part(self, token_ids: Tensor) -> Tensor:
        """This rank's share of `embed`: zeros for ids that another rank holds."""
        mine = (token_ids >= self.ids.start) & (token_ids < self.ids.stop)
        rows: Tensor = self.weight[torch.where(mine, token_ids - self.ids.start, 0)]
        return rows.masked_fill_(~mine[:, None], 0)

    @property
    def parted(self) -> bool:
        """Whether several ranks have its ids."""
        return self._world.size > 1

    def logits(
        self, ops: Ops, hidden: Tensor, norm_weight: Tensor | None, eps: float, part: bool = False
    ) -> Tensor:
        """[L, hidden], normed first if a weight is given -> [L, vocabulary] fp32, or this rank's
        part of the vocabulary, followed by padding of -inf."""
        logits = ops.linear(
            hidden, self.weight, norm_weight=norm_weight, eps=eps, out_dtype=torch.float32
        )
        if not part:
            return self._world.gather_vocab(logits, self._vocab_size)
        if logits.shape[1] > length(self.ids):
            logits[:, length(self.ids) :] = -torch.inf
        return logits

    def best(
        self, ops: Ops, logits: Tensor, noise: tuple[Tensor, Tensor, Tensor, Tensor] | None
    ) -> Tensor:
        """[L, this rank's part] -> [L]: the ids by `ops.greedy`, or `ops.sample` with its other
        arguments, of all ranks' logits side by side."""
        return ops.best_of_parts(
            self._world.beside(ops.best_of_part(logits, self.ids.start, noise))
        )

"""The residual stream of a decoder: the residual, and sometimes its norm as well.

Invariant: `residual_norm` is the one operation between a row-parallel product and what follows.
With several ranks the norm is computed together with the sum, which saves a kernel; with one rank
the next product computes its own norm.
"""

from dataclasses import dataclass

from torch import Tensor

from quire.engine.model.layers.parallel import World, has_mail
from quire.kernels.ops import Ops, has_exchange


@dataclass(frozen=True, slots=True)
class ResidualStream:
    """residual: [T, H]; normed: its RMSNorm by the norm that comes next, or None: not made yet."""

    residual: Tensor
    normed: Tensor | None = None

    def norm(self, ops: Ops, weight: Tensor, eps: float) -> Tensor:
        """The residual's norm, which must be the next one: [T, H]."""
        return ops.rms_norm(self.residual, weight, eps) if self.normed is None else self.normed


def residual_norm(
    ops: Ops, world: World, partial: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> ResidualStream:
    """The residual plus all ranks' partials, summed in rank order and rounded once, and its norm.

    partial: [T, H], this rank's; residual: [T, H], whose storage may be reused, None: zeros;
    weight: [H]. Where ranks reach each other's memory, one kernel does all of it.
    """
    exchange = world.exchange
    if exchange is not None and has_mail(exchange) and has_exchange(ops):
        mail = exchange.mail_for(partial)
        if mail is not None:
            return ResidualStream(*ops.residual_norm(partial, residual, weight, eps, mail))
    whole = world.sum(partial) if residual is None else world.add_partials(partial, residual)
    return ResidualStream(whole, ops.rms_norm(whole, weight, eps))

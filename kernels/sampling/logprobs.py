"""Log-probabilities whose bits are the row's own."""

from torch import Tensor


def by_row(logits: Tensor, tokens: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `reference.logprobs`, by a kernel of the library that sums each row alone; its reduction
    cuts rows as their number asks."""
    logs = logits.log_softmax(-1)
    one = tokens[:, None].long().clamp(min=0)
    rank = (logits > logits.gather(1, one)).sum(-1) + 1
    ids = logits.topk(count, dim=-1).indices
    return logs.gather(1, one)[:, 0], rank, ids, logs.gather(1, ids)

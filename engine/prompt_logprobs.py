"""Log-probabilities of a prompt's own tokens, on their way from the runner to the service.

They are records of fixed size, one per token, as bytes: they cross processes unchanged, and
thousands of them need not become Python objects before they are sent. Numbers are little-endian.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from quire.engine.request import TokenLogprob


@cache
def record(top: int) -> np.dtype[np.void]:
    """The record's dtype: a token's log-probability, its rank, and the ids and values of the best
    `top`, best first."""
    pairs = [("ids", "<i4", (top,)), ("values", "<f4", (top,))] if top else []
    return np.dtype([("logprob", "<f4"), ("rank", "<i4"), *pairs])


def packed(
    logprobs: npt.NDArray[np.float32],
    ranks: npt.NDArray[np.int64],
    ids: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    top: int,
) -> bytes:
    """Records of tokens. logprobs, ranks: [J]; ids, values: [J, at least top]. Empty bytes where
    a log-probability is no finite number."""
    if not np.isfinite(logprobs).all():
        return b""
    records = np.empty(len(logprobs), record(top))
    records["logprob"], records["rank"] = logprobs, ranks
    if top:
        records["ids"], records["values"] = ids[:, :top], values[:, :top]
    return records.tobytes()


def unpacked(data: bytes, top: int, token_ids: Sequence[int]) -> Iterator[TokenLogprob]:
    """The records of these tokens in turn, converted lazily."""
    for token_id, one in zip(token_ids, np.frombuffer(data, record(top)), strict=True):
        best = zip(one["ids"].tolist(), one["values"].tolist(), strict=True) if top else ()
        yield TokenLogprob(token_id, float(one["logprob"]), int(one["rank"]), tuple(best))

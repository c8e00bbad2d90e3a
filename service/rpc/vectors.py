"""The engine's pooled outputs as embeddings and scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_FLOAT = np.dtype("<f4")
_LEAST = 1e-12  # a length below is taken for this one, as in torch's normalize


def embeddings(pooled: Sequence[bytes], dimensions: int | None) -> npt.NDArray[np.float32]:
    """[texts, dimensions], each row of length 1. pooled: hidden states; dimensions: the first so
    many numbers of each; None: all."""
    rows = np.frombuffer(b"".join(pooled), _FLOAT).reshape(len(pooled), -1)
    wide = rows[:, :dimensions].astype(np.float64)
    lengths = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    made: npt.NDArray[np.float32] = (wide / np.maximum(lengths, _LEAST)).astype(np.float32)
    return made


def scores(pooled: Sequence[bytes]) -> list[float]:
    """The probability of "yes" over "no". pooled: the two logits, of "no" first."""
    pairs: npt.NDArray[Any] = np.frombuffer(b"".join(pooled), _FLOAT).reshape(-1, 2)
    apart = pairs[:, 1].astype(np.float64) - pairs[:, 0]
    # Each side with the exponential that cannot overflow.
    small = np.exp(-np.abs(apart))
    likely = np.where(apart >= 0, 1.0, small) / (1.0 + small)
    return [float(one) for one in likely]

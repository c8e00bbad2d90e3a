"""The contract's floats have 32 bits; Python's, and JSON's, have 64."""

import math

MAX_FLOAT32 = (2 - 2**-23) * 2.0**127
_LEAST = 2.0**-149


def no_zero(value: float) -> float:
    """The value, or what is next to 0 where that would become 0."""
    return math.copysign(max(abs(value), _LEAST), value) if value else value

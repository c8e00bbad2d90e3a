"""Token ids as bytes: four each, as the device, the cache's hashes and other ranks take them.

Invariant: a request's ids are made bytes once, when it comes; whatever takes some of them from then
on copies bytes. To make bytes of a prompt of thousands of ids takes longer than to hash them.
"""

import struct
from array import array
from collections.abc import Sequence


def packed(ids: Sequence[int]) -> bytes:
    """Their bytes. Raises struct.error for an id beyond 32 bits."""
    if isinstance(ids, array):
        return ids.tobytes()
    return struct.Struct(f"<{len(ids)}i").pack(*ids)  # struct.pack would copy the ids


def as_array(ids: Sequence[int]) -> "array[int]":
    """The same ids, of which parts are bytes at once; from a tuple in half of array's own time."""
    made = array("i")
    made.frombytes(packed(ids))
    return made


def unpacked(data: bytes) -> tuple[int, ...]:
    """What `packed` was given."""
    return struct.unpack(f"<{len(data) // 4}i", data)

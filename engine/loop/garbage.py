"""Garbage collection that does not stall steps: start-up's objects are never scanned again."""

import contextlib
import gc
from collections.abc import Iterator


def freeze() -> None:
    """Collect once, then exclude all objects that exist now from later collections."""
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """Turn collection off while torch is imported. Its modules stay, and collections would take a
    fifth of the import time."""
    looks = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if looks:
            gc.enable()


@contextlib.contextmanager
def put_off_for_good() -> Iterator[None]:
    """The same for a process of one engine or rank. All objects that exist then are excluded from
    later collections: neither they nor what they refer to is ever collected."""
    with put_off():
        try:
            yield
        finally:
            gc.freeze()

"""What start-up made stays: collections need not look at it again, and stall no step for it."""

import contextlib
import gc
from collections.abc import Iterator


def freeze() -> None:
    """Collect once, and let later collections pass over all that is there now."""
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """Around imports of torch, whose modules stay: collections would take a fifth of their time."""
    looks = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if looks:
            gc.enable()


@contextlib.contextmanager
def put_off_for_good() -> Iterator[None]:
    """The same in a process of one engine, or one rank. Later collections pass over all objects of
    that moment: neither they nor what they refer to is ever collected."""
    with put_off():
        try:
            yield
        finally:
            gc.freeze()

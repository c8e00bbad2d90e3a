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
    """Around imports of torch, whose modules stay: collections would take a fifth of their time,
    and later ones look at none of what is there then."""
    looks = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if looks:
            gc.enable()

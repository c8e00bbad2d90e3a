"""What start-up made stays: collections need not look at it again, and stall no step for it."""

import gc


def freeze() -> None:
    """Collect once, and let later collections pass over all that is there now."""
    gc.collect()
    gc.freeze()

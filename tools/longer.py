"""A plugin of pytest: property tests with ten times the examples (part of `make test-long`).

    PYTHONPATH=tools TESTS_LONGER=10 python -m pytest -p longer FILES

Each test keeps the settings that it names and gets TESTS_LONGER times its examples. Only files that
use hypothesis gain by it.
"""

import os
from typing import Any

from hypothesis import settings

TIMES = int(os.environ.get("TESTS_LONGER", "10"))
_DEFAULT = 100  # hypothesis' own number of examples
_plain = settings.__init__


def _longer(self: settings, *args: Any, **kwargs: Any) -> None:
    """As settings are made anywhere from here on."""
    if isinstance(kwargs.get("max_examples"), int):
        kwargs["max_examples"] *= TIMES
    _plain(self, *args, **kwargs)


settings.__init__ = _longer  # type: ignore[method-assign]
settings.register_profile("longer", max_examples=_DEFAULT)
settings.load_profile("longer")

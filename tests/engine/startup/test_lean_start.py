"""What an engine of one rank does not load before it serves."""

import subprocess
import sys

_LOADED = """
import sys
import quire.engine.startup.build_engine
parts = ("quire.engine.parallel", "quire.engine.startup.start_ranks", "transformers")
print(*sorted(m for m in sys.modules if m.startswith(parts)))
"""


def test_one_rank_alone_loads_nothing_that_ranks_speak_through() -> None:
    """A hundred modules, a twentieth of what is loaded before the device is asked."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", _LOADED], check=True, capture_output=True, text=True
    )
    assert done.stdout.split() == []

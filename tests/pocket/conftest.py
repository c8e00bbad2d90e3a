"""The tools' modules are scripts beside each other: their folder goes on the path, last."""

import os
import sys
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
TOOLS = Path(__file__).resolve().parents[2] / "tools" / "pocket"
if str(TOOLS) not in sys.path:
    sys.path.append(str(TOOLS))

import pytest  # noqa: E402
from rows import Encoder  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from quire.service.models import pocket  # noqa: E402


@pytest.fixture(scope="session")
def shipped() -> Path:
    """The directory that ships."""
    return pocket.directory()


@pytest.fixture(scope="session")
def encoder(shipped: Path) -> Encoder:
    return Encoder(Tokenizer.from_file(str(shipped / "tokenizer.json")))

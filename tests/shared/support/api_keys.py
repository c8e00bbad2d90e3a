"""Two API keys, and the file that lets them in."""

from pathlib import Path

from quire.service.security.auth import make_entry

ALICE, BOB = "alice-key-0123456789", "bob-key-0123456789ab"


def key_file(directory: Path) -> Path:
    """A file with both keys; alice's is an operator's."""
    path = directory / "keys"
    path.write_text(
        f"# who may call\n\n{make_entry('alice', ALICE)} operator\n{make_entry('bob', BOB)}\n"
    )
    return path

"""The examples of prefixes that are found again, over one `quire serve pocket`."""

import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import programs
from support.patience import PATIENCE
from support.server_process import process

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FIGURES = re.compile(r"prompt (\d+) tokens: (\d+) found")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a server with the embedded model."""
    with process("--num-blocks", "512", "--block-size", "16") as server:
        yield server.address()


def figures(name: str, address: str) -> tuple[str, list[tuple[int, int]]]:
    """What an example prints, and the tokens of each prompt: all, and found."""
    done = programs.run([sys.executable, str(EXAMPLES / name), address], timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout, [(int(all_), int(found)) for all_, found in FIGURES.findall(done.stdout)]


def test_a_chat_remembers_and_computes_only_what_is_new(address: str) -> None:
    told, turns = figures("remembering_chat.py", address)
    said = told.split("> What is the city of Tom?")[1]
    for fact in ("Oslo", "7305", "fox"):
        assert fact in said
    assert len(turns) == 4
    for (before, _), (prompt, found) in itertools.pairwise(turns):
        assert before - 8 <= found < prompt  # but for the marks at a turn's end


def test_a_long_prefix_is_computed_once(address: str) -> None:
    told, letters = figures("many_documents.py", address)
    assert len(letters) == 10 and letters[0][0] > 500
    assert letters[0][1] < 0.1 * letters[0][0]
    assert all(found > 0.9 * prompt for prompt, found in letters[1:])
    assert re.search(r"10 letters: \d+ prompt tokens, 8\d% found", told)


@pytest.mark.parametrize("name", ["remembering_chat.py", "many_documents.py"])
def test_without_a_server_it_says_what_to_type(name: str) -> None:
    done = programs.run([sys.executable, str(EXAMPLES / name), "127.0.0.1:1"], timeout=PATIENCE)
    assert done.returncode == 1 and "quire serve pocket" in done.stderr

"""What every notebook needs: Pocket, its tokenizer, and a word to whoever lacks a library.

Notebooks lie one folder below this one and import it so:

    import sys
    sys.path.insert(0, "..")
    import lab
"""

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chapters

COURSE = Path(__file__).resolve().parent
ROOT = COURSE.parent
POCKET = ROOT / "service" / "models" / "pocket"
LIBRARIES = ("torch", "safetensors", "tokenizers", "matplotlib")

if str(COURSE) not in sys.path:  # so that `mini` is found, whoever imports this module
    sys.path.append(str(COURSE))


def missing_word(libraries: tuple[str, ...] = LIBRARIES) -> str | None:
    """What is missing and what to type, in one sentence; None if all is there."""
    absent = [name for name in libraries if importlib.util.find_spec(name) is None]
    if not absent:
        return None
    return f"{' and '.join(absent)} cannot be imported: type pip install -e '.[course]' in {ROOT}"


def need(*libraries: str) -> None:
    """SystemExit with that sentence."""
    word = missing_word(libraries or LIBRARIES)
    if word:
        raise SystemExit(word)


need()

import torch  # noqa: E402
from mini.model import Model  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

torch.set_num_threads(1)  # figures of one core: they depend least on whose machine it is


@dataclass(frozen=True)
class Pocket:
    """The model that Quire ships, and its tokenizer."""

    model: Model
    tokenizer: Tokenizer

    def ask(self, *turns: str) -> list[int]:
        """The token ids of a conversation that begins with the user and is the model's to go on:
        turns are the user's and the assistant's, in turn."""
        roles = ("user", "assistant")
        said = [f"<|im_start|>{roles[i % 2]}\n{text}<|im_end|>\n" for i, text in enumerate(turns)]
        text = "".join(said) + "<|im_start|>assistant\n"
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def text(self, token_ids: list[int]) -> str:
        """Ids as text, without the marks around turns."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

    def word(self, token_id: int) -> str:
        """One id as text, marks shown."""
        return str(self.tokenizer.decode([token_id], skip_special_tokens=False))


def figures(chapter: str) -> dict[str, Any]:
    """Run a chapter's figures. Raises AssertionError unless they are those that its text shows;
    times, which `measured` names, may differ."""
    run = chapters.load(COURSE / chapter / "run.py")
    fresh: dict[str, Any] = json.loads(json.dumps(run.figures()))
    kept = json.loads((COURSE / chapter / "figures.json").read_text(encoding="utf-8"))
    for key in fresh.keys() - set(fresh.get("measured", ())):
        assert alike(kept[key], fresh[key]), f"{chapter}: {key} was {kept[key]}, is {fresh[key]}"
    return fresh


def show(table: Sequence[Sequence[Any]]) -> None:
    """Print a table: each column as wide as it needs, without the marks of the texts' tables."""
    cells = [[str(cell).replace("**", "").strip("`") for cell in line] for line in table]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def draw(chapter: str, found: dict[str, Any]) -> Any:
    """The picture of these figures."""
    return chapters.load(COURSE / chapter / "run.py").draw(found)


def alike(kept: Any, fresh: Any) -> bool:
    """Equal; fractions to 0.01 and percentages to 1: another processor may round otherwise."""
    if isinstance(kept, list) and isinstance(fresh, list):
        return len(kept) == len(fresh) and all(map(alike, kept, fresh))
    if isinstance(kept, dict) and isinstance(fresh, dict):
        return kept.keys() == fresh.keys() and all(alike(kept[key], fresh[key]) for key in kept)
    one, other = str(kept), str(fresh)
    slack = 1.0 if one.endswith("%") else 0.0101 if "." in one else 0.0
    try:
        return abs(float(one.rstrip("%")) - float(other.rstrip("%"))) <= slack
    except ValueError:
        return one == other


def pocket() -> Pocket:
    """Read it; about a tenth of a second."""
    return Pocket(Model.read(POCKET), Tokenizer.from_file(str(POCKET / "tokenizer.json")))

"""What every notebook needs: Pocket, its tokenizer, and a word to whoever lacks a library.

Notebooks lie one folder below this one and import it so:

    import sys
    sys.path.insert(0, "..")
    import lab
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

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


def pocket() -> Pocket:
    """Read it; about a tenth of a second."""
    return Pocket(Model.read(POCKET), Tokenizer.from_file(str(POCKET / "tokenizer.json")))

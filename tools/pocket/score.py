"""Quick scores by teacher forcing.

Invariant: a case counts exactly when greedy decoding would give its answer and then EOS (of a turn,
or of a plain text). Greedy decoding gives a text if and only if, fed that text, the model's best
next token is always the text's: one forward pass decides, and no generation is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from cells import Cell
from network import Pocket
from rows import Encoder

ROWS = 64


@dataclass(frozen=True)
class Score:
    """Shares of one cell: answers exactly right, answer tokens right."""

    cell: Cell
    exact: float
    tokens: float


@dataclass(frozen=True)
class _Row:
    ids: list[int]
    answer: int
    """How many of `ids`, at the end, are the answer's (its EOS included)."""


class Scorer:
    """Fixed cases of every cell; the same ones at each call."""

    def __init__(self, encoder: Encoder, cells: Sequence[Cell], seed: int, count: int) -> None:
        self._pad = encoder.pad
        self._rows: list[tuple[Cell, list[_Row]]] = []
        for cell in cells:
            rows = []
            for case in cell.cases(seed, count):
                end = encoder.im_end if case.prompt else encoder.pad
                answer = [*encoder.tokenizer.encode(case.answer).ids, end]
                rows.append(_Row(encoder.tokenizer.encode(case.text).ids + answer, len(answer)))
            self._rows.append((cell, sorted(rows, key=lambda row: len(row.ids))))

    @torch.no_grad()
    def scores(self, model: Pocket) -> list[Score]:
        """The scores of `model` with its weights rounded to bf16, as they ship."""
        device = next(model.parameters()).device
        plain = Pocket(model.shape, model.compute).to(device)
        plain.load_state_dict({n: p.bfloat16().float() for n, p in model.state_dict().items()})
        return [self._score(plain, cell, rows) for cell, rows in self._rows]

    def _score(self, model: Pocket, cell: Cell, rows: list[_Row]) -> Score:
        right = tokens = hits = 0
        for at in range(0, len(rows), ROWS):
            for good, count in self._part(model, rows[at : at + ROWS]):
                right += good == count
                hits += good
                tokens += count
        return Score(cell, right / max(1, len(rows)), hits / max(1, tokens))

    def _part(self, model: Pocket, rows: list[_Row]) -> list[tuple[int, int]]:
        """(answer tokens right, answer tokens) of each row."""
        longest = max(len(row.ids) for row in rows)
        padded = torch.tensor([r.ids + [self._pad] * (longest - len(r.ids)) for r in rows])
        padded = padded.to(next(model.parameters()).device)
        hidden = model.hidden(padded)
        found = []
        for at, row in enumerate(rows):
            first, last = len(row.ids) - row.answer, len(row.ids)
            best = model.logits(hidden[at, first - 1 : last - 1]).argmax(-1)
            found.append(((best == padded[at, first:last]).sum(), row.answer))
        return [(int(good), count) for good, count in found]

"""Chapter 1's figures: what the last token of a text looks at, and what each layer would say."""

from typing import Any

import lab
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from mini.layers import attention, rms_norm
from torch import Tensor

QUESTION = "What is 20 + 22?"


class Watched:
    """A memory that keeps nothing but what the last token looked at: of each layer, [heads, T]."""

    def __init__(self) -> None:
        self.looks: list[Tensor] = []

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG002
        group = q.shape[1] // k.shape[1]
        keys = k.repeat_interleave(group, dim=1)
        scores = torch.einsum("hd,khd->hk", q[-1], keys) / q.shape[2] ** 0.5
        self.looks.append(scores.softmax(-1))
        return attention(q, k, v)


def guesses(pocket: lab.Pocket, tokens: list[int]) -> list[tuple[str, float]]:
    """What the model would say if it ended after each layer: the word and its probability."""
    model = pocket.model
    said = []
    for layers in range(1, model.config.num_layers + 1):
        hidden = model.hidden(tokens, list(range(len(tokens))), Watched(), layers)[-1:]
        hidden = rms_norm(hidden, model.weights["model.norm.weight"], model.config.rms_norm_eps)
        chances = (hidden @ model.weights["model.embed_tokens.weight"].T).softmax(-1)[0]
        word = int(chances.argmax())
        said.append((pocket.word(word), round(float(chances[word]), 3)))
    return said


def shown(word: str) -> str:
    """A token as it is drawn: spaces and line breaks can be seen."""
    return word.replace(" ", "\u2423").replace("\n", "\\n")


def figures() -> dict[str, Any]:
    """Behind `20 + 22 = `: what the last token looks at, and each layer's guess."""
    pocket = lab.pocket()
    answer = pocket.ask(QUESTION) + pocket.tokenizer.encode("20 + 22 = ").ids
    watched = Watched()
    model = pocket.model
    model.logits(answer, list(range(len(answer))), watched, [-1])
    config = model.config
    said = guesses(pocket, answer)
    rows = [
        [str(layer), f"`{shown(word)}`", f"{chance:.3f}"]
        for layer, (word, chance) in enumerate(said, 1)
    ]
    return {
        "table": [["after layer", "likeliest next token", "its probability"], *rows],
        "words": [pocket.word(token) for token in answer],
        "looks": [[round(float(x), 4) for x in look.mean(0)] for look in watched.looks],
        "parameters": sum(weight.numel() for weight in model.weights.values()),
        "layers": config.num_layers,
    }


def draw(found: dict[str, Any]) -> Figure:
    """A row a layer, a column a token of the text: where the last token looks."""
    words = [shown(word) for word in found["words"]]
    figure, axes = plt.subplots(figsize=(10, 3.6), layout="constrained")
    image = axes.imshow(found["looks"], aspect="auto", cmap="Blues", vmin=0, vmax=0.5)
    axes.set_xticks(range(len(words)), words, rotation=60, ha="right", family="monospace")
    names = [f"{row[0]}: says {row[1]}" for row in found["table"][1:]]
    axes.set_yticks(range(len(names)), [name.replace("`", "") for name in names])
    axes.set_ylabel("layer")
    axes.set_title("Where the last token looks, and what would be said after each layer")
    figure.colorbar(image, label="share of its attention (mean of heads)")
    return figure

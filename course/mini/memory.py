"""Keys and values kept, for one text (chapter 2), and the two loops that it tells apart."""

import torch
from torch import Tensor

from mini.layers import attention
from mini.model import Model, NoMemory


class Kept:
    """Room for `capacity` tokens, filled from the front: [layers, 2, capacity, Hkv, D].

    `length` tokens have been through all layers. A step writes behind them, layer by layer, and
    `advance` counts them when the last layer has.
    """

    def __init__(self, model: Model, capacity: int) -> None:
        config = model.config
        shape = (config.num_layers, 2, capacity, config.num_kv_heads, config.head_dim)
        self.store = torch.zeros(shape)
        self.length = 0

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        end = self.length + k.shape[0]
        self.store[layer, 0, self.length : end] = k
        self.store[layer, 1, self.length : end] = v
        return attention(q, *self.store[layer, :, :end])

    def advance(self, count: int) -> None:
        self.length += count


def generate_forgetful(model: Model, prompt: list[int], max_tokens: int) -> list[int]:
    """Greedy, the whole text once more for each token: the loop of chapter 1."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        places = list(range(len(tokens)))
        tokens.append(best(model.logits(tokens, places, NoMemory(), [-1])))
        if tokens[-1] in model.config.eos_token_ids:
            break
    return tokens[len(prompt) :]


def generate(model: Model, prompt: list[int], max_tokens: int) -> list[int]:
    """Greedy, each token through the model once: the loop of chapter 2."""
    memory = Kept(model, len(prompt) + max_tokens)
    tokens, new = list(prompt), list(prompt)
    while len(tokens) < len(prompt) + max_tokens:
        places = list(range(memory.length, memory.length + len(new)))
        new_token = best(model.logits(new, places, memory, [-1]))
        memory.advance(len(new))
        tokens.append(new_token)
        new = [new_token]
        if new_token in model.config.eos_token_ids:
            break
    return tokens[len(prompt) :]


def best(logits: Tensor) -> int:
    """The likeliest next token. logits: [1, vocab] or [vocab]."""
    return int(logits.argmax())

"""A host that is one step ahead of its device. The device is a thread that does its work in order.

Invariant: what a step needs of the step before it, it reads on the device. The host never looks
at a token before the next step has been launched.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from mini.memory import Kept
from mini.model import Model

Launched = Future[list[int]]


class Device:
    """What would be on a card: a memory a request, and each request's last token."""

    def __init__(self, model: Model, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        self.model = model
        self.last = torch.zeros(len(prompts), dtype=torch.int64)
        self.memories = [Kept(model, len(prompt) + max_tokens + 1) for prompt in prompts]
        self.stream = ThreadPoolExecutor(1)  # one thread: in the order in which it was launched

    def launch(self, rows: Sequence[int], prompts: Sequence[Sequence[int]] = ()) -> Launched:
        """Put a step into the stream: a row is its last token, or its prompt. Returns at once."""
        return self.stream.submit(self._step, list(rows), [list(prompt) for prompt in prompts])

    def _step(self, rows: list[int], prompts: list[list[int]]) -> list[int]:
        for place, row in enumerate(rows):
            memory = self.memories[row]
            tokens = prompts[place] if prompts else [int(self.last[row])]
            places = list(range(memory.length, memory.length + len(tokens)))
            logits = self.model.logits(tokens, places, memory, [-1])
            memory.advance(len(tokens))
            self.last[row] = logits.argmax()
        return self.last[rows].tolist()


def generate_ahead(
    model: Model, prompts: Sequence[Sequence[int]], max_tokens: int
) -> tuple[list[list[int]], int]:
    """Greedy answers, and how many tokens were drawn for nothing: an end is seen a step late."""
    device = Device(model, prompts, max_tokens)
    answers: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    wasted, rows = 0, alive
    flying = device.launch(rows, prompts)
    while alive:
        # A limit can be counted to; an end token is seen a step late.
        next_rows = [row for row in alive if len(answers[row]) + 1 < max_tokens]
        following = device.launch(next_rows)  # before anybody knows what the step before it says
        for row, token in zip(rows, flying.result(), strict=True):
            if row not in alive:
                wasted += 1  # it had ended when this step was launched already
                continue
            answers[row].append(token)
            if token in model.config.eos_token_ids or len(answers[row]) == max_tokens:
                alive.remove(row)
        rows, flying = next_rows, following
    wasted += len(flying.result())
    device.stream.shutdown()
    return answers, wasted

"""Captured and replayed, the operations give what they give eagerly, dependent launch or not."""

import pytest
import torch
from torch import Tensor

pytestmark = [pytest.mark.gpu, pytest.mark.triton]

HIDDEN, INNER, VOCAB = 1024, 3072, 20_000


class _Step:
    """A miniature of a decode step: a layer's products, the head, sampling, state."""

    def __init__(self, rows: int, device: torch.device, pdl: bool) -> None:
        from quire.kernels.ops import select

        self.ops = select(device, pdl=pdl)
        self.device = device
        random = torch.Generator().manual_seed(rows)

        def draw(*shape: int) -> Tensor:
            spread = shape[-1] ** -0.5 if len(shape) > 1 else 1.0
            values = torch.randn(*shape, generator=random) * spread
            return values.to(device, torch.bfloat16)

        self.embedding, self.norm = draw(VOCAB, HIDDEN), 1 + draw(HIDDEN) * 0.1
        self.up, self.down = draw(2 * INNER, HIDDEN), draw(HIDDEN, INNER)
        self.slots = torch.arange(rows, device=device, dtype=torch.int32)
        self.table = torch.arange(rows + 1, device=device, dtype=torch.int32)[:, None].repeat(1, 8)
        self.temperature = torch.linspace(0, 1.5, rows + 1, device=device)
        self.seeds = torch.arange(rows + 1, device=device) * 7919
        self.top_k = torch.full((rows + 1,), 50, device=device, dtype=torch.int32)
        self.top_p = torch.full((rows + 1,), 0.9, device=device)
        self.none = torch.zeros(rows + 1, device=device)
        ints = {"device": device, "dtype": torch.int32}
        self.ids, self.positions, self.lens = (torch.zeros(rows, **ints) for _ in range(3))
        self.mapping = torch.zeros(rows, device=device, dtype=torch.int64)
        self.blocks = torch.zeros(rows, 8, **ints)
        self.last, self.computed = torch.zeros(rows + 1, **ints), torch.zeros(rows + 1, **ints)
        self.reset()

    def reset(self) -> None:
        self.last.copy_(torch.arange(len(self.last), device=self.device))
        self.computed.zero_()

    def run(self) -> None:
        ops = self.ops
        ops.prepare_decode(
            self.slots, self.last, self.computed, self.table, 16, self.ids, self.positions,
            self.mapping, self.lens, self.blocks,
        )  # fmt: skip
        h = self.embedding[self.ids]
        for _ in range(3):
            x = ops.linear(h, self.up, norm_weight=self.norm, eps=1e-6, silu=True)
            h = ops.linear(x, self.down, residual=h)
        logits = ops.linear(
            h, self.embedding, norm_weight=self.norm, eps=1e-6, out_dtype=torch.float32
        )
        logits *= 20
        slots = self.slots
        ops.filter_logits(logits, slots, self.temperature, self.top_k, self.top_p, self.none)
        tokens = ops.sample(logits, slots, self.lens, self.temperature, self.seeds)
        ops.advance(slots, None, self.computed, None, tokens, self.last, None)


def _tokens(step: _Step, run: object, steps: int) -> list[list[int]]:
    step.reset()
    found = []
    for _ in range(steps):
        run()  # type: ignore[operator]
        found.append(step.last[:-1].tolist())
    return found


@pytest.mark.parametrize("pdl", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 7, 16, 40, 128, 256])
def test_replays_draw_what_eager_steps_draw(rows: int, pdl: bool, device: torch.device) -> None:
    step = _Step(rows, device, pdl)
    eager = _tokens(step, step.run, 10)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.run()
    assert _tokens(step, graph.replay, 10) == eager
    assert step.computed[:-1].tolist() == [10] * rows


@pytest.mark.parametrize("rows", [1, 16, 256])
def test_dependent_launch_changes_no_token(rows: int, device: torch.device) -> None:
    plain, dependent = _Step(rows, device, False), _Step(rows, device, True)
    assert _tokens(plain, plain.run, 10) == _tokens(dependent, dependent.run, 10)

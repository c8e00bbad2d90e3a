"""Where the bits of two ways to serve a request part: the first layer and operation that differ.

    python benchmarks/exact_find.py --model-shape 0.6B --pair "batch of 2" --key 3 [--token 0]

Steps run one launch after another, not captured. Each token's row is marked before and after every
product of a layer: what enters `o` is attention's, what enters `qkv` and `gate_up` the residual
stream. Marks are compared position by position, in the order in which they are computed.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from exact_mode import Marked, fillers, requests
from torch import Tensor

from quire.engine.request import GenerationRequest
from quire.kernels.triton_ops import TritonOps

_PRODUCTS = ("qkv", "o", "gate_up", "down")

Row = tuple[int, int]  # seed and position of a token


@dataclass
class States:
    """What every product took and gave, by row: marks in the order of the step, with the number of
    rows that stood in it."""

    marks: dict[Row, list[int]] = field(default_factory=dict)
    rows: dict[Row, int] = field(default_factory=dict)

    def add(self, owners: list[Row], marks: list[list[int]]) -> None:
        """One step. marks: [products * 2, rows]."""
        for place, row in enumerate(owners):
            self.marks[row] = [one[place] for one in marks]
            self.rows[row] = len(owners)


class Watch:
    """Looks at the steps of an engine that is built inside `seen`, one launch after another."""

    def __init__(self) -> None:
        self._slots: Tensor | None = None
        self._inside = False
        self._marks: list[Tensor] = []
        self.states = States()

    @contextmanager
    def seen(self) -> Iterator[None]:
        """Layers keep the operations that they were built with: these stand in before."""
        linear = TritonOps.linear
        decode, mixed = TritonOps.prepare_decode, TritonOps.prepare_mixed

        def slots_of_rows(ops: Any, slots: Tensor, *rest: Any) -> None:
            self._slots = slots.long()
            decode(ops, slots, *rest)

        def slots_of_tokens(ops: Any, slots: Tensor, starts: Tensor, *rest: Any) -> None:
            self._slots = slots.long().repeat_interleave(starts.diff().long())
            mixed(ops, slots, starts, *rest)

        def product(ops: Any, x: Tensor, *rest: Any, **around: Any) -> Tensor:
            inside = self._inside
            if inside:
                self._marks.append(_mark(x))
            found = linear(ops, x, *rest, **around)
            if inside:
                self._marks.append(_mark(found))
            return found

        with ExitStack() as stack:
            for name, stand_in in (
                ("prepare_decode", slots_of_rows),
                ("prepare_mixed", slots_of_tokens),
                ("linear", product),
            ):
                stack.enter_context(mock.patch.object(TritonOps, name, stand_in))
            yield

    @contextmanager
    def steps(self, engine: Any) -> Iterator[States]:
        """Marks what an engine computes inside."""
        self.states = States()
        model, seeds_of = engine.runner._model, engine.runner._state.seeds
        forward = model.forward

        def step(batch: Any, *rest: Any) -> Tensor:
            self._inside, self._marks = True, []
            found: Tensor = forward(batch, *rest)
            self._inside = False
            assert self._slots is not None
            owners = zip(seeds_of[self._slots].tolist(), batch.positions.tolist(), strict=False)
            self.states.add(list(owners), torch.stack(self._marks).tolist())
            return found

        with mock.patch.object(model, "forward", step):
            yield self.states


def _mark(x: Tensor) -> Tensor:
    """[rows]: each row's bits as one number, in which places count."""
    bits = x.contiguous().view(torch.int16).long()
    places = torch.arange(1, bits.shape[1] + 1, device=x.device)
    return (bits * places).sum(1)


def told(seed: int, one: States, other: States) -> str:
    """The first place at which a request's states differ."""
    for seed_of, position in sorted(one.marks):
        row = (seed_of, position)
        if seed_of != seed or row not in other.marks:
            continue
        pairs = zip(one.marks[row], other.marks[row], strict=True)
        first = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if first is not None:
            layer, place = divmod(first, 2 * len(_PRODUCTS))
            side = ("what enters", "what leaves")[place % 2]
            rows = f"{one.rows[row]} and {other.rows[row]} rows"
            return f"position {position}, layer {layer}, {side} {_PRODUCTS[place // 2]}, {rows}"
    return "no state differs"


def find(model: str, dtype: str, *place: Any) -> str:
    """Serve a request alone and as the pair has it, and tell where the two part. place: the pair,
    the request's key, its first token that differed."""
    watch = Watch()
    with watch.seen():
        return _parted(watch, Marked(model, dtype, enforce_eager=True, overlap=False), *place)


def _parted(watch: Watch, engine: Marked, pair: str, key: int, token: int) -> str:
    specs = [_short(spec, token + 2) for spec in requests()]
    mine = next(spec for spec in specs if spec.key == key)
    with watch.steps(engine.engine) as alone:
        engine.serve([[mine]])
    kind, _, number = pair.rpartition(" ")
    with watch.steps(engine.engine) as paired:
        if kind == "batch of":
            size = int(number)
            beside, count = fillers(max(size - len(specs), 0)), min(size, len(specs))
            begin = (key - 1) // count * count
            engine.serve([[*beside, *specs[begin : begin + count]]])
        elif kind == "chunks of":
            engine.serve([[mine]], chunk=int(number))
        else:
            engine.serve([specs], apart=3)
    return told(mine.sampling.seed or 0, alone, paired)


def _short(spec: GenerationRequest, tokens: int) -> GenerationRequest:
    return replace(spec, sampling=replace(spec.sampling, max_tokens=tokens))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model-shape", default="0.6B")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    parser.add_argument("--pair", default="batch of 2", help="as exact_mode.py names it")
    parser.add_argument("--key", type=int, default=1)
    parser.add_argument("--token", type=int, default=0, help="the first that differed")
    options = parser.parse_args()
    found = find(
        f"random:{options.model_shape}", options.dtype, options.pair, options.key, options.token
    )
    print(options.pair, "request", options.key, found)


if __name__ == "__main__":
    main()

"""Ranks on GPUs of this machine, as processes that run one case of this file and say what came.

    python -m support.gpu_ranks CASE RANK SIZE FOLDER

They meet at a file store in FOLDER, which only these programs do. A case is a function of `Rank`;
what it returns is printed as a line of JSON.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import FileStore

from quire.engine.errors import RankError
from quire.engine.model.layers.parallel import World
from quire.engine.model.layers.residual import ResidualStream, residual_norm
from quire.engine.parallel.gpu_exchange import DeviceExchange, over_nccl
from quire.kernels.linear import all_reduce_norm as kernels
from quire.kernels.triton_ops import TritonOps

WIDTH = 5120
EPS = 1e-6
LIMIT = 120.0  # seconds


@dataclass(frozen=True)
class Rank:
    """What a case is given."""

    number: int
    size: int
    device: torch.device
    exchange: DeviceExchange
    ops: TritonOps

    @property
    def world(self) -> World:
        return World(self.number, self.size, self.exchange)

    def randn(self, *shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        rng = torch.Generator(device=self.device).manual_seed(seed)
        return torch.randn(*shape, generator=rng, device=self.device, dtype=dtype)

    def add(self, part: Tensor, residual: Tensor | None, weight: Tensor) -> ResidualStream:
        """The operation; it must be the kernel's."""
        assert self.exchange.mail_for(part) is not None
        return residual_norm(self.ops, self.world, part, residual, weight, EPS)

    def twin(self, part: Tensor, residual: Tensor | None, weight: Tensor) -> ResidualStream:
        """The same over NCCL."""
        world = self.world
        whole = world.sum(part) if residual is None else world.add_partials(part, residual)
        return ResidualStream(whole, self.ops.rms_norm(whole, weight, EPS))

    def same_everywhere(self, x: Tensor) -> bool:
        return all(torch.equal(one, x) for one in self.exchange.gather(x).unbind())

    def barrier(self) -> None:
        self.exchange.gather(torch.zeros(1, device=self.device))
        torch.cuda.synchronize()

    def captured(self, step: Callable[[], Any]) -> torch.cuda.CUDAGraph:
        """A graph of what has run once before."""
        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        step()
        graph.capture_end()
        return graph


def equality(rank: Rank) -> dict[str, Any]:
    """The kernel is its twin, bit for bit where no order of a norm's sum is left open."""
    faults = []
    for dtype in (torch.bfloat16, torch.float16):
        weight = rank.randn(WIDTH, seed=1, dtype=dtype)
        for turn, rows in enumerate((1, 2, 3, 64, 65, 300, 513, 1500, 1, 300)):
            part = rank.randn(rows, WIDTH, seed=100 * turn + rank.number, dtype=dtype)
            residual = rank.randn(rows, WIDTH, seed=50 + turn, dtype=dtype) if turn % 3 else None
            wanted = rank.twin(part, residual, weight)
            mine = rank.add(part, None if residual is None else residual.clone(), weight)
            assert mine.normed is not None and wanted.normed is not None
            close = torch.allclose(mine.normed.float(), wanted.normed.float(), rtol=2e-2, atol=1e-2)
            checks = (
                torch.equal(mine.residual, wanted.residual),
                close,
                rank.same_everywhere(mine.residual),
                rank.same_everywhere(mine.normed),
            )
            if not all(checks):
                faults.append([str(dtype), rows, *checks])
    return {"faults": faults}


def _sums(rank: Rank, rows: int, exchanges: int) -> tuple[Callable[[], None], Tensor]:
    """So many exchanges behind one another, each of what the one before has made, and where they
    go on; halved, so that numbers stay what they are."""
    weight = torch.ones(WIDTH, device=rank.device, dtype=torch.bfloat16)
    state = rank.randn(rows, WIDTH, seed=rank.number)

    def step() -> None:
        for _ in range(exchanges):
            state.copy_(rank.add(state, None, weight).residual.mul_(1 / rank.size))

    return step, state


def graphs(rank: Rank) -> dict[str, Any]:
    """Graphs with odd numbers of exchanges of different sizes, alternated: the halves of the
    inboxes go on. After the first exchange all ranks have one state, which stays."""
    made = [_sums(rank, rows, count) for rows, count in ((3, 1), (1, 3), (70, 5), (600, 3))]
    captured = [rank.captured(step) for step, _ in made]
    wanted = [state.clone() for _, state in made]
    for turn in range(300):
        captured[(turn * turn + turn // 3) % len(captured)].replay()
        if turn % 7 == 0:
            made[turn % 3][0]()
    torch.cuda.synchronize()
    same = [torch.equal(state, want) for (_, state), want in zip(made, wanted, strict=True)]
    return {"same": same, "everywhere": [rank.same_everywhere(state) for _, state in made]}


def million(rank: Rank) -> dict[str, Any]:
    """A million exchanges of one row, by a graph of 1001."""
    step, state = _sums(rank, 1, 1)
    weight = torch.ones(WIDTH, device=rank.device, dtype=torch.bfloat16)
    step()
    part = state / rank.size  # of all the same: their sum is the state
    total = torch.zeros(1, device=rank.device, dtype=torch.int64)

    def many() -> None:
        for _ in range(1001):
            rank.add(part, None, weight)
        total.add_((rank.add(part, None, weight).residual != state).sum())

    graph = rank.captured(many)
    for _ in range(1000):
        graph.replay()
    torch.cuda.synchronize()
    return {"wrong": int(total.item()), "late": rank.exchange._inbox.late}  # type: ignore[union-attr]


def late(rank: Rank) -> dict[str, Any]:
    """A rank that does not come: the others' waits end, and what looks at results is told."""
    kernels.SPIN_SECONDS = 0.2
    weight = torch.ones(WIDTH, device=rank.device, dtype=torch.bfloat16)
    part = rank.randn(2, WIDTH, seed=rank.number)
    rank.barrier()
    if rank.number:
        rank.barrier()
        return {"raised": True, "nan": True}
    found = [rank.add(part, None, weight).residual for _ in range(50)][-1]
    torch.cuda.synchronize()
    try:
        rank.exchange.check()
        raised = False
    except RankError:
        raised = True
    rank.barrier()
    return {"raised": raised, "nan": bool(found.isnan().any())}


def times(rank: Rank) -> dict[str, Any]:
    """Microseconds of one exchange with its norm inside a graph, by rows; of the twin as well."""
    weight = torch.ones(WIDTH, device=rank.device, dtype=torch.bfloat16)
    found: dict[str, Any] = {}
    for rows in (1, 8, 64, 256, 1024):
        part = torch.zeros(rows, WIDTH, device=rank.device, dtype=torch.bfloat16)
        residual = torch.zeros_like(part)
        for name, add in (("kernel", rank.add), ("nccl", rank.twin)):
            once = partial(add, part, residual, weight)
            count = 64 if rows <= 256 else 8
            graph = rank.captured(lambda once=once, count=count: [once() for _ in range(count)])  # type: ignore[misc]
            found[f"{name} {rows}"] = _microseconds(rank, graph) / count
    return found


def _microseconds(rank: Rank, graph: torch.cuda.CUDAGraph) -> float:
    spans = []
    for turn in range(13):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        rank.barrier()
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        spans += [begin.elapsed_time(end) * 1000] if turn > 2 else []
    return round(statistics.median(spans), 2)


CASES = {case.__name__: case for case in (equality, graphs, million, late, times)}


def run_case(case: str, size: int, folder: Path) -> list[dict[str, Any]]:
    """What each rank's process has said. Raises RuntimeError with the words of one that failed."""
    command = [sys.executable, "-m", "support.gpu_ranks", case]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(size), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(size)
    ]
    try:
        said = [process.communicate(timeout=LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
    failed = [
        error for process, (_, error) in zip(processes, said, strict=True) if process.returncode
    ]
    if failed:
        raise RuntimeError("\n".join(error[-1500:] for error in failed))
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def main(cases: str, number: str, size: str, folder: str) -> None:
    """One rank's life. cases: names with commas between; one line each."""
    rank, device = int(number), torch.device("cuda", int(number))
    store = FileStore(str(Path(folder) / f"{cases}.store"), int(size))
    exchange = over_nccl(store, rank, int(size), device, WIDTH)
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream(device)):
        place = Rank(rank, int(size), device, exchange, TritonOps.on(device, pdl=True))
        for case in cases.split(","):
            print(json.dumps(CASES[case](place)), flush=True)
            place.barrier()  # nobody goes on while another still reads


if __name__ == "__main__":
    main(*sys.argv[1:])

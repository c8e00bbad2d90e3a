"""Ranks are killed under load, one a round, and one is stopped for too long.

    python tools/chaos_ranks.py [--rounds N] [--seed S] [--json FILE]
    python tools/chaos_ranks.py --device cuda --nodes 1 --ranks 2 --model random:0.6B

Two nodes of this machine, two ranks each (gloo on the CPU, NCCL on its GPUs), meet at a free port
and serve streams; or one node serves alone.
Then a process is killed by SIGKILL: in turn each rank and the second node's own process; in the
last round a rank is stopped for longer than the watchdog's bounds. What must be true then: every
stream has ended, none as if it were whole; every process of the nodes is gone; nothing is left in
/dev/shm or in a GPU's memory; and the next round starts at once, at the same ports. Exits non-zero
where one is not.
"""

import argparse
import contextlib
import json
import os
import random
import secrets
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "shared"))

import grpc  # noqa: E402
import psutil  # noqa: E402
from support.fork_server import FRESH  # noqa: E402
from support.free_ports import free_ports  # noqa: E402
from support.server_process import Process, long_request, process, runs  # noqa: E402

from quire.v1 import inference_pb2_grpc as pb_grpc  # noqa: E402

STREAMS = 4
SECONDS = 60.0  # in which all must be gone
WATCHDOG = ("--watchdog-seconds", "2", "--watchdog-exit-seconds", "2")
SPARE_MIB = 64  # of a GPU's memory, which another program may take meanwhile


@dataclass
class Round:
    """What one round has shown. Seconds count from the signal."""

    victim: str
    signal: str
    start_seconds: float
    codes: list[str] = field(default_factory=list)
    streams_seconds: float = 0.0
    gone_seconds: float = 0.0
    exits: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def main() -> int:
    """Run the rounds, print each, judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10, help="processes to kill")
    parser.add_argument("--seed", type=int, help="of where in its streams one is killed")
    parser.add_argument("--json", type=Path, help="where to write what was seen")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--nodes", type=int, choices=(1, 2), default=2)
    parser.add_argument("--ranks", type=int, default=4, help="of all nodes together")
    parser.add_argument("--model", default="random:tiny")
    args = parser.parse_args()
    if args.ranks % args.nodes or args.ranks < 2:
        parser.error("--ranks must be two or more, as many on each node")
    seed = secrets.randbelow(1 << 20) if args.seed is None else args.seed
    chance, ports = random.Random(seed), free_ports(2)
    victims = [f"rank {i}" for i in range(args.ranks)] + ["node 1"] * (args.nodes - 1)
    rounds = []
    for number in range(args.rounds + 1):
        stopped = number == args.rounds
        victim = f"rank {args.ranks - 1}" if stopped else victims[number % len(victims)]
        rounds.append(one_round(args, victim, stopped, chance.randrange(1, 60), ports))
        print(told(rounds[-1]), flush=True)
    if args.json is not None:
        found = {
            "command": f"python tools/chaos_ranks.py {' '.join(placed(args))}",
            "cpus": os.cpu_count(),
            "seed": seed,
            "streams": STREAMS,
            "rounds": [asdict(one) for one in rounds],
        }
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    bad = [one for one in rounds if one.wrong]
    print(f"seed {seed}: {len(rounds) - len(bad)} of {len(rounds)} rounds as they must be")
    return 1 if bad else 0


def placed(args: Namespace) -> list[str]:
    """What runs where, as it is asked for here."""
    words = ["--device", args.device, "--nodes", str(args.nodes), "--ranks", str(args.ranks)]
    return [*words, "--model", args.model]


def cards(args: Namespace) -> list[str]:
    """Of the ranks, in their order."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(args.ranks)]


def served(
    args: Namespace, node: int, ports: list[int]
) -> contextlib.AbstractContextManager[Process]:
    """One node's process; the first serves."""
    words = ["--model", args.model, "--device", args.device, *WATCHDOG]
    words += ["--tensor-parallel-size", str(args.ranks)]
    if args.nodes > 1:
        words += ["--nnodes", str(args.nodes), "--node-rank", str(node)]
        words += ["--master-addr", "127.0.0.1", "--master-port", str(ports[0])]
    words += ["--port", str(ports[1])] if node == 0 else []
    local = args.ranks // args.nodes
    mine = ",".join(cards(args)[node * local :][:local])
    given = {"CUDA_VISIBLE_DEVICES": mine} if args.device == "cuda" else {}
    given[FRESH] = "1"  # engines and ranks as a user's server starts them
    return process(*words, QUIRE_JOIN_SECRET="of this machine's chaos alone", **given)


def one_round(args: Namespace, victim: str, stopped: bool, tokens: int, ports: list[int]) -> Round:
    """Start the nodes, load them, strike after so many tokens of each stream, look."""
    before, memory, began = shared_memory(), gpu_memory(args), time.monotonic()
    with contextlib.ExitStack() as running:
        others = [running.enter_context(served(args, n, ports)) for n in range(1, args.nodes)]
        first = running.enter_context(served(args, 0, ports))
        channel = running.enter_context(grpc.insecure_channel(first.address()))
        seen = Round(victim, "SIGSTOP" if stopped else "SIGKILL", since(began))
        found = processes(first, others)
        stub = pb_grpc.InferenceServiceStub(channel)
        calls = [stub.Generate(long_request()) for _ in range(STREAMS)]
        for call in calls:
            for _ in range(tokens):
                next(call)
        struck = time.monotonic()
        (found[victim].suspend if stopped else found[victim].kill)()
        seen.codes = [ended(call) for call in calls]
        seen.streams_seconds = since(struck)
        _, alive = psutil.wait_procs(found.values(), timeout=SECONDS)
        seen.gone_seconds = since(struck)
        seen.wrong += [f"{one} is left" for one in alive]
        for one in alive:
            one.kill()
        seen.exits = [node.end() for node in (first, *others)]
    judge(seen, shared_memory() - before, gpu_memory(args), memory)
    return seen


def since(moment: float) -> float:
    """Seconds from a moment to now, to hundredths."""
    return round(time.monotonic() - moment, 2)


def processes(first: Process, others: list[Process]) -> dict[str, psutil.Process]:
    """By what they are. The first node's engine is rank 0."""
    nodes = [psutil.Process(one.process.pid) for one in (first, *others)]
    below = [p for node in nodes for p in node.children(recursive=True)]
    below.sort(key=psutil.Process.create_time)
    engines, followers = (
        [p for p in below if runs(p, program)] for program in ("engine_child", "rank_child")
    )
    ranks = {f"rank {number}": one for number, one in enumerate((*engines, *followers))}
    return {f"node {number}": one for number, one in enumerate(nodes)} | ranks


def ended(call: grpc.Call) -> str:
    """How a stream ends, once it does."""
    with contextlib.suppress(grpc.RpcError):
        for _ in call:  # type: ignore[attr-defined]
            pass
    return str(call.code().name)


def judge(seen: Round, left: set[str], memory: list[int], before: list[int]) -> None:
    """What must be true of every round."""
    if set(seen.codes) != {"UNAVAILABLE"}:
        seen.wrong.append(f"streams ended {', '.join(seen.codes)}")
    if 0 in seen.exits:
        seen.wrong.append(f"exit codes {seen.exits}")
    if left:
        seen.wrong.append(f"left in /dev/shm: {', '.join(sorted(left))}")
    if any(now > then + SPARE_MIB for now, then in zip(memory, before, strict=True)):
        seen.wrong.append(f"MiB taken on the GPUs: {memory}, before: {before}")


def shared_memory() -> set[str]:
    """Names in /dev/shm."""
    place = Path("/dev/shm")
    return {entry.name for entry in place.iterdir()} if place.is_dir() else set()


def gpu_memory(args: Namespace) -> list[int]:
    """MiB that are taken on each of the ranks' GPUs; nothing where they have none."""
    if args.device == "cpu":
        return []
    asked = [
        "nvidia-smi",
        "-i",
        ",".join(cards(args)[: args.ranks]),
        "--query-gpu=memory.used",
        "--format=csv,noheader,nounits",
    ]
    return [int(line) for line in subprocess.check_output(asked, text=True).splitlines()]


def told(seen: Round) -> str:
    """One line."""
    text = (
        f"{seen.signal} of {seen.victim}: started in {seen.start_seconds:.1f} s; streams over "
        f"after {seen.streams_seconds:.1f} s ({', '.join(sorted(set(seen.codes)))}), processes "
        f"after {seen.gone_seconds:.1f} s, exit codes {seen.exits}"
    )
    return text + "".join(f"; WRONG: {words}" for words in seen.wrong)


if __name__ == "__main__":
    sys.exit(main())

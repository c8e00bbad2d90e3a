"""Ranks on two nodes are killed under load, one a round, and one is stopped for too long.

    python tools/chaos_ranks.py [--rounds N] [--seed S] [--json FILE]

Two nodes of this machine, two ranks each (gloo, on the CPU), meet at a free port and serve streams.
Then a process is killed by SIGKILL: in turn each rank and the second node's own process; in the
last round a rank is stopped for longer than the watchdog's bounds. What must be true then: every
stream has ended, none as if it were whole; every process of both nodes is gone; nothing is left in
/dev/shm; and the next round starts at once, at the same ports. Exits non-zero where one is not.
"""

import argparse
import contextlib
import json
import os
import random
import secrets
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "shared"))

import grpc  # noqa: E402
import psutil  # noqa: E402
from support.server_process import Process, long_request, process  # noqa: E402

from quire.v1 import inference_pb2_grpc as pb_grpc  # noqa: E402

STREAMS = 4
SECONDS = 60.0  # in which all must be gone
WATCHDOG = ("--watchdog-seconds", "2", "--watchdog-exit-seconds", "2")
OPTIONS = ("--model", "random:tiny", "--device", "cpu", "--tensor-parallel-size", "4")


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
    args = parser.parse_args()
    seed = secrets.randbelow(1 << 20) if args.seed is None else args.seed
    chance, ports = random.Random(seed), free_ports(2)
    victims = ["rank 0", "rank 1", "rank 2", "rank 3", "node 1"]
    rounds = []
    for number in range(args.rounds + 1):
        stopped = number == args.rounds
        victim = "rank 3" if stopped else victims[number % len(victims)]
        rounds.append(one_round(victim, stopped, chance.randrange(1, 60), ports))
        print(told(rounds[-1]), flush=True)
    if args.json is not None:
        found = {
            "command": "python tools/chaos_ranks.py",
            "cpus": os.cpu_count(),
            "seed": seed,
            "streams": STREAMS,
            "rounds": [asdict(one) for one in rounds],
        }
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    bad = [one for one in rounds if one.wrong]
    print(f"seed {seed}: {len(rounds) - len(bad)} of {len(rounds)} rounds as they must be")
    return 1 if bad else 0


def one_round(victim: str, stopped: bool, tokens: int, ports: list[int]) -> Round:
    """Start both nodes, load them, strike after so many tokens of each stream, look."""
    before, began = shared_memory(), time.monotonic()
    place = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(ports[0]))
    words = (*OPTIONS, *WATCHDOG, *place)
    secret = {"QUIRE_JOIN_SECRET": "of this machine's chaos alone"}
    with (
        process(*words, "--node-rank", "1", **secret) as other,
        process(*words, "--port", str(ports[1]), **secret) as first,
        grpc.insecure_channel(first.address()) as channel,
    ):
        seen = Round(victim, "SIGSTOP" if stopped else "SIGKILL", since(began))
        found = processes(first, other)
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
        seen.exits = [first.end(), other.end()]
    judge(seen, shared_memory() - before)
    return seen


def since(moment: float) -> float:
    """Seconds from a moment to now, to hundredths."""
    return round(time.monotonic() - moment, 2)


def processes(first: Process, other: Process) -> dict[str, psutil.Process]:
    """By what they are."""
    node_0, node_1 = (psutil.Process(one.process.pid) for one in (first, other))
    below = node_0.children(recursive=True)
    (engine,) = (p for p in below if "engine_child" in " ".join(p.cmdline()))
    (rank_1,) = (p for p in below if "rank_child" in " ".join(p.cmdline()))
    rank_2, rank_3 = sorted(node_1.children(), key=lambda p: p.pid)
    ranks = {"rank 0": engine, "rank 1": rank_1, "rank 2": rank_2, "rank 3": rank_3}
    return {"node 0": node_0, "node 1": node_1, **ranks}


def ended(call: grpc.Call) -> str:
    """How a stream ends, once it does."""
    with contextlib.suppress(grpc.RpcError):
        for _ in call:  # type: ignore[attr-defined]
            pass
    return str(call.code().name)


def judge(seen: Round, left: set[str]) -> None:
    """What must be true of every round."""
    if set(seen.codes) != {"UNAVAILABLE"}:
        seen.wrong.append(f"streams ended {', '.join(seen.codes)}")
    if 0 in seen.exits:
        seen.wrong.append(f"exit codes {seen.exits}")
    if left:
        seen.wrong.append(f"left in /dev/shm: {', '.join(sorted(left))}")


def shared_memory() -> set[str]:
    """Names in /dev/shm."""
    place = Path("/dev/shm")
    return {entry.name for entry in place.iterdir()} if place.is_dir() else set()


def free_ports(count: int) -> list[int]:
    """So many that nobody listens on."""
    with contextlib.ExitStack() as opened:
        taken = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in taken]


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

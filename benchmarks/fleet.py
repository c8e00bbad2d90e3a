"""Many replicas in virtual time: the client's own routing over the engine's own schedulers.

Conversations of several turns under a few shared system prompts arrive in bursts; replicas die and
come back; broken streams go on elsewhere. What is real: the keys of prompts, the fleet's choice and
its memory (`clients/replicas/`), and a scheduler with its block pool a replica
(`engine/scheduling/`). What is not: the device, which takes the time that its numbers of tokens and
rows say, and the clock. One client, as a gateway in front of the fleet would be.

    python benchmarks/fleet.py [--replicas 10 100 1000] [--out benchmarks/results/fleet.json]

Conversations begin within the seconds that are asked for; deaths go on until the last has ended.

Rows: hit rate (prompt tokens found in a cache, of all), the same of one ideal cache that never
forgets, imbalance (the fullest replica's open calls over the mean, looked at twenty times a
second while that is one or more: median and p99), waits from asking to being scheduled, streams
resumed and lost, and this program's own time, of all and of choosing one call's replica.
"""

import argparse
import gc
import heapq
import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import common
from fleet_conversations import Conversation, IdealCache, conversation

from quire.clients.replicas.addresses import Address
from quire.clients.replicas.affinity import PromptKeys, keys_of
from quire.clients.replicas.fleet import Fleet
from quire.clients.replicas.policy import MAX_RESUMES, PREFIX, ROUND_ROBIN
from quire.engine.request import GenerationRequest, Output, SamplingParams
from quire.engine.scheduling.block_pool import BlockPool
from quire.engine.scheduling.plan import StepPlan, StepResult
from quire.engine.scheduling.scheduler import Scheduler

BLOCK, BLOCKS, SLOTS, BUDGET = 16, 2048, 32, 2048
STEP, PER_PROMPT_TOKEN, PER_ROW = 0.008, 60e-6, 20e-6  # seconds: an 8B on one card, roughly
RATE = 2.0  # conversations a second and replica, on average
BURST, BURST_SHARE, BURST_SECONDS = 2.5, 0.2, 5.0  # times the rate, of the time, each so long
THINK = 4.0  # seconds between turns, on average
DEATHS = 0.003  # a second and replica
AWAY = 15.0  # seconds until a dead one is back
WORK, SHORTEST, LONGEST = 1200.0, 4.0, 60.0  # seconds of replicas; seconds of a run
JITTER = (0.05, 0.1)  # seconds before a broken stream goes on


# ------------------------------------------------------------ replicas


@dataclass(slots=True)
class Call:
    """One turn on its way."""

    key: int
    talk: Conversation
    keys: PromptKeys
    asked_at: float
    output_tokens: int
    received: list[int] = field(default_factory=list)
    breaks: int = 0
    started: bool = False
    at: str = ""


class Replica:
    """A scheduler on a device that takes the time its step's size says."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.life = 0  # raised by a death: what was planned before is void
        self.alive = True
        self.calls: dict[int, Call] = {}
        self.plan: StepPlan | None = None
        self._fresh()

    def _fresh(self) -> None:
        self.scheduler = Scheduler(
            BlockPool(BLOCKS, BLOCK, seed=0),
            max_num_seqs=SLOTS,
            max_num_batched_tokens=BUDGET,
            max_model_len=4096,
        )

    def die(self) -> list[Call]:
        """The calls that were open."""
        broken, self.calls, self.plan = list(self.calls.values()), {}, None
        self.alive, self.life = False, self.life + 1
        return broken

    def come_back(self) -> None:
        """With an empty cache."""
        self.alive = True
        self._fresh()

    def submit(self, call: Call) -> None:
        """Queue a call, from what was received of it on."""
        params = SamplingParams(max_tokens=call.output_tokens, seed=call.key)
        self.calls[call.key] = call
        self.scheduler.submit(
            GenerationRequest(
                call.key, tuple(call.talk.ids), params, resume_token_ids=tuple(call.received)
            )
        )

    def begin_step(self) -> float | None:
        """Plan the next step if none runs; the seconds it takes, or None."""
        if self.plan is not None or not self.alive:
            return None
        self.plan = self.scheduler.schedule()
        if self.plan is None:
            return None
        rows = self.plan.num_decode_rows
        return STEP + PER_PROMPT_TOKEN * (self.plan.num_tokens - rows) + PER_ROW * rows

    def end_step(self) -> list[Output]:
        """What the step brought."""
        assert self.plan is not None
        plan, self.plan = self.plan, None
        tokens = [
            [1000 + (row.key * 31 + (row.start + row.num_tokens) * 7) % 90_000]
            for row in plan.rows
            if row.samples
        ]
        return self.scheduler.apply(plan, StepResult(tokens))


# ------------------------------------------------------------ the world


@dataclass
class Seen:
    """What is measured."""

    prompt: int = 0
    hit: int = 0
    ideal: int = 0
    waits: list[float] = field(default_factory=list)
    imbalance: list[float] = field(default_factory=list)
    calls: int = 0
    resumed: int = 0
    lost: int = 0
    deaths: int = 0
    choosing: float = 0.0  # seconds of this program's own


class World:
    """One run: events in the order of their virtual time."""

    def __init__(self, count: int, routing: str, seconds: float, seed: int) -> None:
        self.now, self.seconds, self.seed = 0.0, seconds, seed
        self.chance = random.Random(seed)
        self.replicas = {name: Replica(name) for name in (f"r{i}:1" for i in range(count))}
        self.fleet = Fleet(routing, clock=lambda: self.now)
        self.fleet.update(Address(name, name[:-2], 1) for name in self.replicas)
        self.seen, self.ideal = Seen(), IdealCache(BLOCK)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order, self._keys = itertools.count(), itertools.count(1)
        self._numbers = itertools.count()
        self._talking = 0  # conversations that have not ended

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        """Something that happens so much later."""
        heapq.heappush(self._events, (self.now + seconds, next(self._order), then))

    def run(self) -> Seen:
        """To the end of the last call."""
        self._arrive()
        self._look()
        self.after(self._until_death(), self._death)
        while self._events:
            self.now, _, then = heapq.heappop(self._events)
            then()
        return self.seen

    # ------------------------------------------------------------ arrivals

    def _arrive(self) -> None:
        if self.now >= self.seconds:
            return
        if self.now:
            self._talking += 1
            self._next_turn(conversation(next(self._numbers), self.seed))
        calm = (1 - BURST * BURST_SHARE) / (1 - BURST_SHARE)
        bursts = self.now % (BURST_SECONDS / BURST_SHARE) < BURST_SECONDS
        rate = RATE * len(self.replicas) * (BURST if bursts else calm)
        self.after(self.chance.expovariate(rate), self._arrive)

    def _next_turn(self, talk: Conversation) -> None:
        talk.ask()
        self.seen.calls += 1
        call = Call(
            next(self._keys), talk, keys_of(talk.chat), self.now, talk.chance.randrange(16, 49)
        )
        self._send(call)

    def _send(self, call: Call) -> None:
        tried: set[str] = set()
        while True:
            began = time.thread_time()
            address = self.fleet.choose(call.keys, tried)
            self.seen.choosing += time.thread_time() - began
            if address is None:
                self._lose()
                return
            if self.replicas[address.name].alive:
                break
            tried.add(address.name)
            self.fleet.leave(address.name)
            self.fleet.down(address.name, "refused", lost=True)
        call.at = address.name
        replica = self.replicas[call.at]
        replica.submit(call)
        self._step(replica)

    # ------------------------------------------------------------ steps

    def _step(self, replica: Replica) -> None:
        seconds = replica.begin_step()
        if seconds is not None:
            life = replica.life
            self.after(seconds, lambda: self._stepped(replica, life))

    def _stepped(self, replica: Replica, life: int) -> None:
        if replica.life != life:
            return
        for output in (*replica.end_step(), *replica.scheduler.drain_outputs()):
            self._take(replica, output)
        self._step(replica)

    def _take(self, replica: Replica, output: Output) -> None:
        call = replica.calls[output.key]
        if output.started and not call.started:
            call.started = True
            self.seen.prompt += len(call.talk.ids)
            self.seen.ideal += self.ideal.hit(call.talk.ids)
            self.ideal.add(call.talk.ids)
            self.seen.hit += output.cached_tokens
            self.seen.waits.append(self.now - call.asked_at)
        call.received += output.token_ids
        if output.finish is not None:
            del replica.calls[call.key]
            self.fleet.leave(replica.name)
            self.fleet.up(replica.name)
            call.talk.answer(call.received)
            self.ideal.add(call.talk.ids)
            if call.talk.turn < call.talk.turns:
                wait = call.talk.chance.expovariate(1 / THINK)
                self.after(wait, lambda: self._next_turn(call.talk))
            else:
                self._talking -= 1

    def _lose(self) -> None:
        self.seen.lost += 1
        self._talking -= 1

    def _going(self) -> bool:
        return self.now < self.seconds or self._talking > 0

    # ------------------------------------------------------------ deaths

    def _until_death(self) -> float:
        return self.chance.expovariate(DEATHS * len(self.replicas))

    def _death(self) -> None:
        if not self._going():
            return
        self.after(self._until_death(), self._death)
        alive = [one for one in self.replicas.values() if one.alive]
        if len(alive) < 2:
            return
        victim = self.chance.choice(alive)
        self.seen.deaths += 1
        self.after(AWAY, victim.come_back)
        for call in victim.die():
            self.fleet.leave(victim.name)
            self.fleet.down(victim.name, "gone", lost=True)
            call.breaks += 1
            if call.breaks > MAX_RESUMES:
                self._lose()
                continue
            self.seen.resumed += 1
            self.after(self.chance.uniform(*JITTER), lambda call=call: self._send(call))

    def _look(self) -> None:
        if not self._going():
            return
        self.after(0.05, self._look)
        loads = [len(one.calls) for one in self.replicas.values() if one.alive]
        mean = sum(loads) / len(loads)
        if mean >= 1:
            self.seen.imbalance.append(max(loads) / mean)


# ------------------------------------------------------------ results


def percentile(values: Sequence[float], share: float) -> float:
    """0 where there is none."""
    return sorted(values)[round(share * (len(values) - 1))] if values else 0.0


def measure(count: int, routing: str, seconds: float, seed: int) -> dict[str, Any]:
    """One row."""
    began = time.process_time()
    gc.collect()
    world = World(count, routing, seconds, seed)
    gc.freeze()  # millions of blocks, which it would go through again and again
    seen = world.run()
    gc.unfreeze()
    return {
        "replicas": count,
        "routing": routing,
        "value": round(seen.hit / seen.prompt, 4),
        "hit_rate": round(seen.hit / seen.prompt, 4),
        "ideal_hit_rate": round(seen.ideal / seen.prompt, 4),
        "of_ideal": round(seen.hit / max(seen.ideal, 1), 4),
        "imbalance_median": round(statistics.median(seen.imbalance or [0.0]), 3),
        "imbalance_p99": round(percentile(seen.imbalance, 0.99), 3),
        "wait_median_ms": round(1e3 * percentile(seen.waits, 0.5), 2),
        "wait_p99_ms": round(1e3 * percentile(seen.waits, 0.99), 2),
        "calls": seen.calls,
        "deaths": seen.deaths,
        "streams_resumed": seen.resumed,
        "streams_lost": seen.lost,
        "arrivals_seconds": seconds,
        "virtual_seconds": round(world.now, 1),
        "choice_ms": round(1e3 * seen.choosing / max(seen.calls + seen.resumed, 1), 4),
        "cpu_seconds": round(time.process_time() - began, 1),
    }


SHOWN = ("replicas", "routing", "hit_rate", "ideal_hit_rate", "imbalance_p99", "wait_p99_ms",
         "calls", "deaths", "streams_resumed", "streams_lost", "choice_ms",
         "cpu_seconds")  # fmt: skip


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument(
        "--seconds",
        type=float,
        help="in which conversations begin (default: fewer for larger fleets)",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if min(options.replicas) < 2 or (options.seconds is not None and options.seconds <= 0):
        parser.error("--replicas: at least 2 each; --seconds: above 0")
    rows = []
    for count in options.replicas:
        for routing in (PREFIX, ROUND_ROBIN):
            seconds = options.seconds or min(max(WORK / count, SHORTEST), LONGEST)
            rows.append(measure(count, routing, seconds, options.seed))
            print(rows[-1], flush=True)
            if options.out:
                common.write_results(options.out, rows)
    common.print_table("fleets", SHOWN, [[row[name] for name in SHOWN] for row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())

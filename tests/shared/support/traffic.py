"""Random traffic for the simulator, made from a seed alone.

An episode is an engine of random shape under a few hundred turns of random load, then a drain.
Prompts come from few documents over few tokens, so prefixes are shared, within a step as well;
caches are tiny, so blocks run out; clients leave, stop strings are found, steps fail.
"""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from support.simulation import Record, Shape, Tally
from support.simulator import Simulator
from support.toy_device import EOS

from quire.engine.errors import RequestError
from quire.engine.request import GenerationRequest, SamplingParams
from quire.engine.scheduling.two_pools import least_window_blocks

SALTS = (b"", b"", b"", b"a", b"b")
CLIENTS = ("", "", "x", "y")
ShapeOf = Callable[[Random], Shape]


def random_shape(rng: Random) -> Shape:
    """A small engine; its cache holds from one and a half to six requests of full length."""
    block_size = rng.choice((1, 2, 3, 4, 8))
    max_model_len = rng.randint(12, 56)
    full = -(-max_model_len // block_size)
    max_num_seqs = rng.randint(1, 8)
    return Shape(
        num_blocks=1 + int(full * rng.uniform(0.8, 4)) + rng.randint(0, 3),
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + rng.choice((0, 1, 3, 8, 40)),
        max_model_len=max_model_len,
        two_phase=rng.random() < 0.25,
        caching=rng.random() < 0.85,
        depth=rng.choice((0, 1, 1, 1, 2)),
        vocab=rng.choice((2, 6, 30)),
    )


def windowed_shape(rng: Random) -> Shape:
    """The same where layers have a window: all of them, or some, in a cache of their own, whose
    blocks are often the fewest that will do."""
    shape = replace(random_shape(rng), window=rng.choice((1, 2, 3, 5, 8, 11, 30)))
    if rng.random() < 0.3:
        return shape
    assert shape.window is not None
    tokens, usable = min(shape.max_num_batched_tokens, shape.max_model_len), shape.num_blocks - 1
    least = least_window_blocks(shape.window, shape.block_size, tokens, usable)
    blocks = max(least, int(usable * rng.choice((0, 0, 0.3, 1))))
    return replace(shape, window_blocks=blocks + 1, pool_seed=rng.randrange(100))


class Traffic:
    """Load on one simulator."""

    def __init__(self, rng: Random, simulator: Simulator) -> None:
        self.rng = rng
        self.simulator = simulator
        self._key = 0
        self._vocab = simulator.shape.vocab
        length = simulator.shape.max_model_len
        self._documents = [self._tokens(length) for _ in range(rng.randint(1, 3))]
        self._rate = rng.choice((0.1, 0.3, 0.6))
        self._abort_rate = rng.choice((0.0, 0.02, 0.1))
        self._fail_rate = rng.choice((0.0, 0.0, 0.01))
        self._priorities = rng.choice((1, 1, 3))
        self._past: list[Record] = []

    def turn(self) -> None:
        """Some clients do something, then the engine turns once."""
        rng, simulator = self.rng, self.simulator
        while len(simulator.open) < 24 and rng.random() < self._rate:
            self._submit()
        if simulator.open and rng.random() < self._abort_rate:
            self._abort()
        if simulator.open and rng.random() < 0.05:
            self._find_stop_string()
        if rng.random() < self._fail_rate:
            simulator.fail(rng.randint(0, simulator.shape.max_num_seqs))
        else:
            simulator.turn()

    def _tokens(self, count: int) -> tuple[int, ...]:
        return tuple(self.rng.randrange(1, 3) for _ in range(count))

    def _submit(self) -> None:
        spec = self._spec()
        before = self.simulator.pool.num_free, self.simulator.scheduler.num_waiting
        try:
            self.simulator.submit(spec)
        except RequestError:
            after = self.simulator.pool.num_free, self.simulator.scheduler.num_waiting
            assert after == before, "a refused request left something behind"
            self.simulator.tally.refused += 1
            return
        self._past.append(self.simulator.records[spec.key, 0])
        del self._past[:-16]

    def _spec(self) -> GenerationRequest:
        rng = self.rng
        self._key += 1
        choice = rng.random()
        if choice < 0.1 and self._past:
            return self._continuation(rng.choice(self._past))
        prompt, salt = self._prompt()
        room = max(1, self.simulator.shape.max_model_len - len(prompt))
        return GenerationRequest(
            self._key,
            prompt,
            SamplingParams(
                seed=rng.randrange(2),
                max_tokens=rng.randint(1, 3 if rng.random() < 0.3 else room),
                min_tokens=rng.choice((0, 0, 1, 5)),
                eos_token_ids=(EOS,),
                ignore_eos=rng.random() < 0.4,
            ),
            n=1 if rng.random() < 0.8 else rng.randint(2, 4),
            priority=rng.randrange(self._priorities),
            cache_salt=salt,
            client=rng.choice(CLIENTS),
        )

    def _continuation(self, past: Record) -> GenerationRequest:
        """A stream that broke: the same request, and the outputs that its client holds."""
        spec, oracle = past.spec, past.oracle
        outputs = spec.resume_token_ids + tuple(oracle.expected)
        held = outputs[: self.rng.randint(0, len(outputs))]
        return replace(spec, key=self._key, n=1, resume_token_ids=held)

    def _prompt(self) -> tuple[tuple[int, ...], bytes]:
        """Prompt and salt: of a document, or a conversation that goes on."""
        rng = self.rng
        limit = self.simulator.shape.max_model_len
        if rng.random() < 0.25 and self._past:
            past = rng.choice(self._past)
            known = past.oracle.token_ids
            return tuple(known[: rng.randint(1, len(known))]), past.spec.cache_salt
        prompt = rng.choice(self._documents)[: rng.randint(1, limit)]
        if rng.random() < 0.5:
            prompt += self._tokens(rng.randint(1, 4))
        if rng.random() < 0.5:
            prompt = prompt[: max(1, limit // 3)]
        return prompt, rng.choice(SALTS)

    def _abort(self) -> None:
        """Mostly of one that runs; sometimes of one that is no more, or never was."""
        if self.rng.random() < 0.1:
            self.simulator.abort(self.rng.randint(1, self._key + 1))
            return
        running = [r.key for r in self.simulator.scheduler.state.running if r.in_flight]
        keys = running or sorted({key for key, _ in self.simulator.open})
        self.simulator.abort(self.rng.choice(keys))

    def _find_stop_string(self) -> None:
        key, index = self.rng.choice(sorted(self.simulator.open))
        tokens = len(self.simulator.open[key, index].tokens)
        if tokens:
            self.simulator.finish(key, index, self.rng.randint(max(0, tokens - 3), tokens))


def run_episode(
    seed: int, turns: int = 200, log: bool = False, shape_of: ShapeOf = random_shape
) -> Simulator:
    """One engine under load for some turns, then drained."""
    rng = Random(seed)
    simulator = Simulator(shape_of(rng))
    if log:
        simulator.log = []
    traffic = Traffic(rng, simulator)
    for _ in range(turns):
        traffic.turn()
    simulator.drain(simulator.work_bound())
    return simulator


def run_steps(
    steps: int, first_seed: int = 0, shape_of: ShapeOf = random_shape
) -> tuple[Tally, int]:
    """Episodes until so many steps were applied; the tally, and how many episodes it took."""
    tally, seed = Tally(), first_seed
    while tally.steps < steps:
        try:
            tally.add(run_episode(seed, shape_of=shape_of).total())
        except BaseException as error:
            error.add_note(f"traffic seed {seed}")
            raise
        seed += 1
    return tally, seed - first_seed

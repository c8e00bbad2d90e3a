"""Who runs next (chapter 6). There is one rule: `computed` chases `len(tokens)`.

A request that has just come is far behind, one that is being answered is one token behind, and one
that was preempted has lost what it had computed and is far behind again. None of these is a phase:
a step gives each of them as many tokens as it lacks, until the step is full.
"""

from collections import deque
from dataclasses import dataclass, field

from mini.chance import Chance
from mini.pages import OutOfBlocks, Row
from mini.prefix import RememberingPool


@dataclass(eq=False)
class Request:
    """A text on its way. tokens: prompt, then output. computed: tokens whose keys are stored.
    chance: how its tokens are drawn (chapter 12); None: the likeliest is taken."""

    prompt: tuple[int, ...]
    max_tokens: int
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    table: list[int] = field(default_factory=list)
    done: bool = False
    cached: int = 0  # tokens that were found in the cache when it was first admitted
    preemptions: int = 0
    chance: Chance | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self.prompt) :]

    @property
    def missing(self) -> int:
        return len(self.tokens) - self.computed


@dataclass(frozen=True)
class Planned:
    """A row of a step, and whose it is."""

    request: Request
    row: Row

    @property
    def samples(self) -> bool:
        """Whether the row reaches the end of what is known: then it tells the next token."""
        return self.row.end == len(self.request.tokens)


class Scheduler:
    """Plans steps of at most `budget` tokens for at most `max_running` requests."""

    def __init__(self, pool: RememberingPool, budget: int, max_running: int) -> None:
        self.pool = pool
        self.budget = budget
        self.max_running = max_running
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in the order in which they were admitted

    def submit(self, request: Request) -> None:
        """Queue a request. Raises ValueError for one that could not even run alone."""
        if not request.prompt or request.max_tokens < 1:
            raise ValueError("a request needs one token of prompt and max_tokens of 1 at least")
        most = len(request.prompt) + request.max_tokens
        if self.pool.blocks_for(most) > self.pool.num_blocks:
            raise ValueError(
                f"prompt and max_tokens = {most} tokens need {self.pool.blocks_for(most)} blocks; "
                f"there are {self.pool.num_blocks}"
            )
        self.waiting.append(request)

    def schedule(self) -> list[Planned]:
        """The next step: who runs goes on, then who waits comes in. Empty if nobody is left."""
        plan: list[Planned] = []
        left = self.budget
        for request in list(self.running):
            if (
                left
                and request in self.running
                and self._secure(request, min(request.missing, left))
            ):
                left -= self._add(plan, request, min(request.missing, left))
        while left and self.waiting and len(self.running) < self.max_running:
            request = self.waiting[0]
            if not self._admit(request):
                break
            left -= self._add(plan, request, min(request.missing, left))
        return plan

    @staticmethod
    def _add(plan: list[Planned], request: Request, count: int) -> int:
        plan.append(Planned(request, Row(tuple(request.table), request.computed, count)))
        return count

    def _secure(self, request: Request, count: int) -> bool:
        """Blocks for `count` more tokens; whoever came last gives up its own for whoever came
        first. False if that was the request itself."""
        while True:
            try:
                self.pool.grow(request.table, request.computed + count)
            except OutOfBlocks:
                victim = self.running[-1]
                self._preempt(victim)
                if victim is request:
                    return False
            else:
                return True

    def _preempt(self, victim: Request) -> None:
        """Its tokens are kept, what was computed of them is not."""
        self.running.remove(victim)
        self.pool.give_back(victim.table)
        victim.computed = 0
        victim.preemptions += 1
        self.waiting.appendleft(victim)

    def _admit(self, request: Request) -> bool:
        """What the cache holds of the text is shared; the rest needs blocks, all of them now."""
        self.pool.share(request.table, self.pool.find(request.tokens))
        found = len(request.table) * self.pool.block_size
        try:
            self.pool.grow(request.table, len(request.tokens))
        except OutOfBlocks:
            self.pool.give_back(request.table)
            return False
        request.computed = found
        if not request.preemptions:
            request.cached = found
        self.waiting.popleft()
        self.running.append(request)
        return True

    def finish(self, request: Request) -> None:
        request.done = True
        self.running.remove(request)
        self.pool.give_back(request.table)

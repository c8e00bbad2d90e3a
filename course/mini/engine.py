"""The engine (chapter 6): plan a step, run it, take its tokens in; until nobody is left."""

from collections.abc import Sequence

from torch import Tensor

from mini.memory import best
from mini.model import Model
from mini.pages import Paged, PagedStore
from mini.prefix import RememberingPool
from mini.scheduler import Planned, Request, Scheduler


def _choose(request: Request, scores: Tensor) -> int:
    """The next token of a request. scores: [V]."""
    chance = request.chance
    return best(scores) if chance is None else chance.draw(scores, len(request.tokens))


class Engine:
    """A model with a store of pages and a scheduler. The likeliest token is taken, but for requests
    that have a chance."""

    def __init__(
        self,
        model: Model,
        *,
        num_blocks: int = 256,
        block_size: int = 16,
        budget: int = 256,
        max_running: int = 16,
        policy: str = "lru",
    ) -> None:
        self.model = model
        self.pool = RememberingPool(num_blocks, block_size, policy)
        self.store = PagedStore(model.config, num_blocks, block_size)
        self.scheduler = Scheduler(self.pool, budget, max_running)
        self.steps: list[list[int]] = []  # of each step, how many tokens each row had

    def step(self) -> bool:
        """One step. False if there was nothing to do."""
        plan = self.scheduler.schedule()
        if not plan:
            return False
        self.steps.append([planned.row.count for planned in plan])
        ends, tokens = self._run(plan)
        for planned in plan:
            request, row = planned.request, planned.row
            request.computed = row.end
            self.pool.remember(row.table, request.tokens[: row.end])
        for planned, token in zip(ends, tokens, strict=True):
            self._take_in(planned.request, token)
        return True

    def _run(self, plan: Sequence[Planned]) -> tuple[list[Planned], list[int]]:
        """All rows through the model at once; the next token of each row that samples."""
        token_ids: list[int] = []
        positions: list[int] = []
        last: list[int] = []
        for planned in plan:
            row = planned.row
            token_ids += planned.request.tokens[row.start : row.end]
            positions += range(row.start, row.end)
            if planned.samples:
                last.append(len(token_ids) - 1)
        ends = [planned for planned in plan if planned.samples]
        memory = Paged(self.store, [planned.row for planned in plan])
        scores = self.model.logits(token_ids, positions, memory, last)
        requests = [planned.request for planned in ends]
        return ends, [_choose(*each) for each in zip(requests, scores, strict=True)]

    def _take_in(self, request: Request, token: int) -> None:
        request.tokens.append(token)
        full = len(request.output) == request.max_tokens
        if full or token in self.model.config.eos_token_ids:
            self.scheduler.finish(request)

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[Request]:
        """Answer all prompts, and tell how it went. Raises ValueError for one that cannot run."""
        requests = [Request(tuple(prompt), max_tokens) for prompt in prompts]
        for request in requests:
            self.scheduler.submit(request)
        while self.step():
            pass
        return requests

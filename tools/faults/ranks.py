"""Faults of what ranks share out, exchange and are told."""

from faults.fault import Fault

SHARDS = ("tests/engine/model/test_shards.py",)
CODEC = ("tests/engine/parallel/test_codec.py",)
TESTS = "tests/engine/parallel/test_ranks.py::test_"
FOLLOWER = "tests/engine/parallel/test_follower.py::test_"

FAULTS = (
    Fault(
        "ranks: one that is lost does not end a start that stands in an exchange",
        "engine/parallel/ranks.py",
        "self._ending, NOTICE_SECONDS)",
        "self._ending)",
        (TESTS + "who_is_lost_before_the_ranks_meet_ends_the_meeting",),
    ),
    Fault(
        "ranks: a rank reads whole rows of a matrix of which it takes some columns",
        "engine/weights/loader.py",
        "            yield row * stored.row_bytes + skipped, self.row_bytes\n",
        "            yield row * stored.row_bytes, self.row_bytes\n",
        SHARDS,
    ),
    Fault(
        "ranks: the padding of the vocabulary is a choice",
        "engine/model/layers/embedding.py",
        "            logits[:, length(self.ids) :] = -torch.inf\n",
        "            pass\n",
        SHARDS,
    ),
    Fault(
        "ranks: each calls its own ids by the first one's numbers",
        "engine/model/layers/embedding.py",
        "ops.best_of_part(logits, self.ids.start, noise)",
        "ops.best_of_part(logits, 0, noise)",
        SHARDS,
    ),
    Fault(
        "ranks: the best is told where all logits are asked for",
        "engine/runner/sampler.py",
        "not (self.filters or self.adjusts or self.logprobs or self.edits)",
        "not (self.filters or self.adjusts or self.edits)",
        SHARDS,
    ),
    Fault(
        "ranks: partial sums are rounded one by one",
        "engine/model/layers/parallel.py",
        "        total = first.float()\n",
        "        total = first\n",
        SHARDS,
    ),
    Fault(
        "ranks: partial sums are taken from the last rank to the first",
        "engine/model/layers/parallel.py",
        "first, *others = self._gather(partial).unbind(0)",
        "first, *others = reversed(self._gather(partial).unbind(0))",
        SHARDS,
    ),
    Fault(
        "ranks: processes started ahead are left, and others started",
        "engine/parallel/process.py",
        "self._ahead.popleft() if self._ahead else",
        "self._ahead.popleft() if not self._command else",
        (TESTS + "processes_started_ahead_become_the_first_ranks",),
    ),
    Fault(
        "ranks: each has as many blocks as rank 0 has room for",
        "engine/startup/start_ranks.py",
        "least = min(blocks, *(",
        "least = max(blocks, *(",
        (TESTS + "ranks_take_the_least_number_of_blocks_of_all",),
    ),
    Fault(
        "ranks: whoever is lost is noticed with the next step alone",
        "engine/parallel/ranks.py",
        "            self._serving = True\n",
        "            self._serving = False\n",
        (TESTS + "a_rank_that_is_lost_takes_the_others_along",),
    ),
    Fault(
        "ranks: those that are left go on waiting for a lost one",
        "engine/parallel/ranks.py",
        "        for other in self._ranks:\n            other.kill()\n",
        "",
        (TESTS + "a_rank_that_is_lost_takes_the_others_along",),
    ),
    Fault(
        "ranks: a follower runs ahead of its device without a bound",
        "engine/parallel/follower.py",
        "        if len(waiting) > _AHEAD:\n            waiting.popleft().wait()\n",
        "",
        (FOLLOWER + "a_follower_executes_in_order_and_is_one_step_ahead_at_most",),
    ),
    Fault(
        "ranks: a failed step leaves them at different places, and the engine goes on",
        "engine/parallel/leader.py",
        "            self._ranks.wait_told()\n        return True\n",
        "            self._ranks.wait_told()\n        return False\n",
        (
            "tests/engine/parallel/test_group_exchange.py::test_an_exchange_whose_other_end_is_gone_is_fatal",
        ),
    ),
    Fault(
        "ranks: what stands behind a plan is not looked at",
        "engine/parallel/codec.py",
        "    if reader.at != len(data):\n",
        "    if reader.at > len(data):\n",
        CODEC,
    ),
    Fault(
        "ranks: logits lie side by side from the last rank to the first",
        "engine/model/layers/parallel.py",
        "side_by_side = self._gather(logits).transpose(0, 1)",
        "side_by_side = self._gather(logits).flip(0).transpose(0, 1)",
        SHARDS,
    ),
)

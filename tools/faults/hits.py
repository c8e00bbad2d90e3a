"""Faults of hits that copy the beginning of a block: too much of it, another's, or too early."""

from faults.fault import Fault

_CACHE = "engine/scheduling/prefix_cache.py"
_STATE = "engine/scheduling/scheduler_state.py"
_SCHEDULER = "engine/scheduling/scheduler.py"


def _hits(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/engine/scheduling/test_hits.py::test_{name}" for name in names)


_LONGEST = _hits("a_hit_is_the_longest_known_beginning_to_the_token_and_leaves_one")

FAULTS = (
    Fault(
        "hits: what follows nothing is the same under every salt",
        _CACHE,
        "return hashes[index - 1] if index else self.root_hash(salt)",
        'return hashes[index - 1] if index else self.root_hash(b"")',
        _hits("another_salt_copies_nothing"),
    ),
    Fault(
        "hits: no token is left to compute",
        _CACHE,
        "min(begin + self.block_size, last)",
        "min(begin + self.block_size, last + 1)",
        _hits("the_same_prompt_again_is_a_row_of_one_token"),
    ),
    Fault(
        "hits: more counts as copied than is equal",
        _CACHE,
        "                best = PartialMatch(block, equal)\n",
        "                best = PartialMatch(block, len(wanted) // _TOKEN_BYTES)\n",
        _LONGEST,
    ),
    Fault(
        "hits: a tail is known by tokens that were never computed",
        _CACHE,
        "packed(token_ids[index * self.block_size : num_tokens])",
        "packed(token_ids[index * self.block_size : num_tokens + 1])",
        _hits("the_next_turn_of_a_conversation_computes_what_is_new_alone"),
    ),
    Fault(
        "hits: one neighbour alone is looked at",
        _CACHE,
        "in children[max(place - 1, 0) : place + 1]:",
        "in children[place : place + 1]:",
        _LONGEST,
    ),
    Fault(
        "hits: every block behind a prefix is looked at",
        _CACHE,
        "in children[max(place - 1, 0) : place + 1]:",
        "in children:",
        _hits("the_most_alike_block_is_found_among_thousands_without_looking_at_them"),
    ),
    Fault(
        "hits: tails that say the same are all kept",
        _CACHE,
        "        if place == len(children) or not children[place][0].startswith(tokens):\n",
        "        if place <= len(children):\n",
        _hits("tails_that_say_the_same_are_kept_once"),
    ),
    Fault(
        "hits: a source may be given out by the plan that copies from it",
        _SCHEDULER,
        "        self.pool.share(held)\n        draft.held += held\n",
        "",
        _hits("a_source_is_given_to_nobody_by_the_plan_that_copies_from_it"),
    ),
    Fault(
        "hits: a source is held for ever",
        _SCHEDULER,
        "            self.pool.release(draft.held)\n",
        "            pass\n",
        _hits("the_same_prompt_again_is_a_row_of_one_token"),
    ),
    Fault(
        "hits: a source is held though the blocks do not suffice",
        _SCHEDULER,
        "if not self.pool.has_room(fresh, (*shared, *held)):",
        "if not self.pool.has_room(fresh, shared):",
        _hits("a_pool_too_small_for_a_source_beside_the_request_computes_instead"),
    ),
    Fault(
        "hits: what is to be copied counts as computed at once",
        _STATE,
        "request.num_applied_tokens = len(shared) * self.pool.block_size",
        "request.num_applied_tokens = computed",
        _hits("what_a_fork_copied_is_known_only_once_its_step_was_applied"),
    ),
    Fault(
        "hits: a request that failed leaves its tail",
        _STATE,
        "        if reason is not FinishReason.ERROR:\n",
        "        if reason:\n",
        _hits("a_request_that_failed_leaves_no_tail"),
    ),
    Fault(
        "hits: the copy is not planned",
        _SCHEDULER,
        "        if source is not None:\n            draft.copies",
        "        if fork is not None and source is not None:\n            draft.copies",
        ("tests/engine/test_equivalences.py::test_a_copy_holds_the_bits_of_its_source",),
    ),
    Fault(
        "hits: what nobody has begun is hashed before its launch",
        _CACHE,
        "if num_blocks and hashes[0] in self._blocks_of:",
        "if num_blocks:",
        _hits("a_prompt_that_nobody_has_begun_is_hashed_while_the_device_computes_it"),
    ),
    Fault(
        "hits: what nobody has begun is hashed once its result has come",
        "engine/loop/core.py",
        "        self.scheduler.completion.hash_ahead()\n",
        "",
        _hits("a_prompt_that_nobody_has_begun_is_hashed_while_the_device_computes_it"),
    ),
)

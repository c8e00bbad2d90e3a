"""Under which keys steps are captured: what their rows need, their sizes and their contexts."""

import pytest

from quire.engine.runner.graphs import (
    FIRST_PROMPTS,
    PROMPT_TOKENS,
    GraphKey,
    GraphSizes,
    captured_sizes,
    context_bounds,
    fixed_bytes,
    most_rows,
    prompt_sizes,
)
from quire.engine.runner.sampler import Needs


@pytest.mark.parametrize("most", (1, 2, 3, 7, 8, 100, 256, 300))
def test_mixed_keys_cover_what_they_are_asked_for(most: int) -> None:
    sizes = GraphSizes(most, 4096, PROMPT_TOKENS)
    for decode in {0, 1, most // 2, most - 1}:
        for longer in {min(n, most - decode) for n in (1, 2, most)} - {0}:
            for tokens in (2 * longer, 15 + longer, 128, 512, 513, 3000, 8192):
                key = sizes.mixed(decode, longer, max(tokens, 2 * longer), 50)
                if key is None:
                    assert max(tokens, 2 * longer) > PROMPT_TOKENS[-1]
                    continue
                assert decode <= key.decode_rows <= most
                assert longer < key.prefill_rows <= 4 * longer, "one row is left for padding"
                assert key.rows <= most_rows(most), "a step's last hidden states have room"
                assert tokens <= key.prefill_tokens or tokens < 2 * longer
                bound = 4 * (key.decode_rows + key.prefill_tokens) + 32 * key.rows + 64
                assert bound <= fixed_bytes(most, sizes.prompt_tokens)


def test_prompts_of_any_length_up_to_the_largest_are_padded_by_little() -> None:
    sizes = GraphSizes(8, 8192, PROMPT_TOKENS)
    for tokens in range(513, 8193):
        key = sizes.mixed(0, 1, tokens, tokens)
        assert key is not None and key.prefill_rows == 2
        assert (
            0 <= key.prefill_tokens - tokens < max(128, tokens // 4)
            and key.prefill_tokens - tokens < 512
        )
    assert sizes.mixed(0, 1, 8193, 8193) is None


def test_long_prompts_beside_many_rows_fall_under_few_keys() -> None:
    """A graph serves only where its key comes again."""
    sizes = GraphSizes(256, 8192, PROMPT_TOKENS)
    rows = range(1, 129)
    keys = {sizes.mixed(decode, longer, 3000, 4000) for decode in rows for longer in rows}
    assert len(keys) <= 25


def test_no_prompt_is_captured_that_a_step_has_no_room_for() -> None:
    assert prompt_sizes(8192, 1000)[-1] == 1024
    assert prompt_sizes(8192, 16) == [16]
    assert prompt_sizes(8192, 16_384) == list(PROMPT_TOKENS)


def test_mixed_keys_stop_where_a_step_is_long() -> None:
    assert prompt_sizes(300, 8192)[-1] == 4096, "padding of a larger one passes the model's length"
    assert prompt_sizes(60, 8192) == [16, 32, 64]
    assert prompt_sizes(8, 8192) == []
    assert GraphSizes(8, 8, ()).mixed(0, 1, 4, 4) is None


def test_context_bounds_cover_the_model_length() -> None:
    for longest in (10, 4096, 4097, 40_960):
        bounds = context_bounds(longest)
        assert bounds[-1] == longest
        assert bounds == sorted(set(bounds))
    assert captured_sizes(1) == [1]


@pytest.mark.parametrize("longest", (100, 256, 300, 8192))
def test_a_lone_prompt_of_few_tokens_has_a_graph_of_short_contexts(longest: int) -> None:
    """Where a context is one split, nothing is merged."""
    sizes = GraphSizes(8, longest, prompt_sizes(longest, 8192))
    common = [key for key in sizes.common_keys() if isinstance(key, GraphKey)]
    assert len(common) == len(set(common))
    for tokens in sizes.prompt_tokens:
        for context in {min(tokens, longest), min(256, longest), min(257, longest), longest}:
            for needs in (None, Needs()):
                key = sizes.mixed(0, 1, tokens, context)
                assert key is not None
                best = sizes.best(key, needs, context)
                short = min(256, longest)
                assert best.context_bound >= min(context, longest)
                assert (best.context_bound == short) == (tokens <= 256 >= context or longest <= 256)
                assert best == key._replace(context_bound=best.context_bound, needs=needs)
                if tokens in FIRST_PROMPTS and needs is None and context <= 4096:
                    assert best in common, "it is captured in spare time"
    for beside in (sizes.mixed(1, 1, 16, 20), sizes.mixed(0, 2, 16, 20)):
        assert beside is not None
        assert sizes.best(beside, None, 20) == beside, "which bursts have captured"
    first = [key for key in sizes.first_keys() if isinstance(key, GraphKey)]
    assert {key.context_bound for key in first} == {sizes.context_bounds[0]}

"""The benchmark of GPT-2 with three kinds of cache compares ways that give the same tokens."""

from pathlib import Path

import pytest
from support.benchmark_code import gpt2_three_caches as bench


@pytest.mark.long
def test_every_way_gives_the_same_tokens_and_is_timed_in_every_round(tmp_path: Path) -> None:
    bench.write_checkpoint(tmp_path, n_layer=1, n_embd=64, n_head=2, vocab_size=1024)
    asks = bench.requests(1024)
    assert len({tuple(ask.prompt[: bench.SHARED]) for ask in asks}) == 1
    ours, theirs = bench.Quire(tmp_path), bench.Transformers(tmp_path)
    seconds = bench.measured(bench.ways(ours, theirs, asks), 1)
    assert list(seconds) == ["quire", "quire, kept", "quire, all at once", "own cache", "no cache"]
    assert all(len(runs) == 1 and runs[0] > 0 for runs in seconds.values())
    with pytest.raises(RuntimeError, match="own cache: not the tokens of no cache"):
        bench.measured({"own cache": lambda: [[0]], "no cache": lambda: [[1]]}, 1)

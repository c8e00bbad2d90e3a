"""`quire serve --dry-run`: a verdict, what to turn, and an exit code that says it too."""

import pytest

from quire.clients import cli
from quire.engine.loop import sizing

GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 GiB."""
    monkeypatch.setattr(sizing, "total_memory", lambda _device: 24 * GIB)


def dry_run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, str]]:
    """Exit code, and the rows that were printed."""
    with pytest.raises(SystemExit) as left:
        cli.main(["serve", *words, "--dry-run", "--device", "cpu"])
    printed = capsys.readouterr()
    assert printed.err == ""
    rows = (line.split("  ", 1) for line in printed.out.splitlines())
    return int(str(left.value.code)), {name: value.strip() for name, value in rows}


def test_what_fits_ends_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    code, rows = dry_run(capsys, "pocket", "--num-blocks", "32")
    assert (code, rows["verdict"]) == (0, "fits")
    assert rows["full-length requests that fit"] == "1"
    assert rows["one request of max_model_len"].startswith("32 blocks, ")
    assert "to turn" not in rows


def test_what_does_not_fit_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    for words, reason, advice in (
        (["pocket", "--num-blocks", "31"], "1984 tokens", "raise num_blocks to at least 32"),
        (["random:0.6B"], "max_model_len = 40960", "raise cpu_kv_gib to at least 8.77"),
        (["random:32B"], "61.02 GiB", "take a smaller model"),
        (["random:0.6B", "--num-blocks", "5000"], "68.37 GiB", "lower num_blocks to at most"),
        (["random:8B", "--dtype", "float32"], "24.00 GiB", "take dtype = bfloat16"),
    ):
        code, rows = dry_run(capsys, *words)
        assert code == 1, words
        assert rows["verdict"].startswith("does not fit: ") and reason in rows["verdict"]
        assert advice in rows["to turn"]
        assert rows["full-length requests that fit"] == "0"


def test_int8_weights_are_counted_as_they_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("random:8B", "--num-blocks", "700")
    _, plain = dry_run(capsys, *words)
    _, int8 = dry_run(capsys, *words, "--quantization", "int8")
    assert (plain["dtype"], int8["dtype"]) == ("bfloat16", "bfloat16, matrices as int8")
    assert (plain["weights"], int8["weights"]) == ("15.26 GiB", "7.63 GiB")

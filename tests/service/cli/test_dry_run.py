"""`quire serve --dry-run`: a verdict, what to change, and an exit code that says it too."""

import pytest

from quire.clients import cli
from quire.engine.config import EngineConfig
from quire.engine.errors import CapacityError
from quire.engine.startup import sizing
from quire.engine.startup.build_engine import build_engine
from quire.service.models import pocket

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
    assert "to change" not in rows


@pytest.mark.parametrize(
    ("words", "weights"),
    [
        (["random:8B-fp8"], "8.79 GiB, FP8"),
        (["random:8B", "--quantization", "fp8"], "8.79 GiB, FP8"),
        (["random:8B"], "15.26 GiB"),
        (["random:30B-A3B-fp8"], "29.03 GiB, FP8"),
        (["random:30B-A3B"], "56.87 GiB"),
        (["random:llama3.1-8B"], "14.96 GiB"),
    ],
)
def test_it_knows_the_sizes_of_families_and_formats(
    capsys: pytest.CaptureFixture[str], words: list[str], weights: str
) -> None:
    assert dry_run(capsys, *words, "--max-model-len", "64")[1]["weights"] == weights


def test_what_does_not_fit_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    for words, reason, advice in (
        (["random:32B"], "61.02 GiB", "take a smaller model"),
        (["random:0.6B", "--num-blocks", "5000"], "68.37 GiB", "lower num_blocks to at most"),
        (["random:8B", "--dtype", "float32"], "24.00 GiB", "take dtype = bfloat16"),
        (["random:0.6B", "--cpu-kv-gib", "0.02"], "28.0 MiB", "raise cpu_kv_gib to at least 8.77"),
    ):
        code, rows = dry_run(capsys, *words)
        assert code == 1, words
        assert rows["verdict"].startswith("does not fit: ") and reason in rows["verdict"]
        assert advice in rows["to change"]
        assert rows["full-length requests that fit"] == "0"
        assert rows["longest request"] == "0 tokens"


def test_what_starts_with_a_cache_too_short_for_the_longest_request_says_so_and_ends_with_0(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words, longest, advice in (
        (["pocket", "--num-blocks", "31"], 1984, "raise num_blocks to at least 32"),
        (["random:0.6B"], 4608, "raise cpu_kv_gib to at least 8.77"),
    ):
        code, rows = dry_run(capsys, *words)
        assert code == 0, words
        assert rows["verdict"].startswith(f"starts: the KV cache holds {longest} tokens, fewer")
        assert rows["verdict"].endswith("longer requests are refused")
        assert rows["longest request"] == f"{longest} tokens"
        assert advice in rows["to change"]


def test_the_verdict_is_what_the_engine_does(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    _, rows = dry_run(capsys, "pocket", "--num-blocks", "31")
    config = EngineConfig(model=str(pocket.directory()), num_blocks=31, device="cpu")
    engine = build_engine(config, lambda *_: None)
    assert f"{engine.info.num_blocks * engine.info.block_size} tokens" == rows["longest request"]
    warned = [record.getMessage() for record in caplog.records]
    assert f"{rows['verdict'].removeprefix('starts: ')}; {rows['to change']}" in warned


def test_several_ranks_hold_a_little_more_than_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Norms stand on each; key/value heads do where there are fewer than ranks."""
    for words, ranks, weights, kv in (
        (["random:8B"], 1, "15.26 GiB", "294912 (288 KiB)"),
        (["random:8B"], 8, "15.26 GiB", "294912 (288 KiB)"),
        (["random:8B"], 16, "15.83 GiB", "589824 (576 KiB)"),
        (["random:8B-fp8"], 8, "8.79 GiB, FP8", "294912 (288 KiB)"),
    ):
        code, rows = dry_run(capsys, *words, "--tensor-parallel-size", str(ranks))
        assert code == 0
        assert (rows["weights"], rows["KV bytes a token"]) == (weights, kv)
        assert rows.get("ranks", "1").startswith(str(ranks))


def test_ranks_that_cannot_share_a_model_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["serve", "random:8B", "--dry-run", "--device=cpu", "--tensor-parallel-size=3"])
    assert left.value.code == 2
    refused = capsys.readouterr().err
    assert refused.startswith("quire: tensor_parallel_size = 3: must divide the model's num_")


def test_what_the_start_refuses_is_refused_here(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["serve", "pocket", "--dry-run", "--device=cpu", "--exact=on"])
    assert (left.value.code, capsys.readouterr().err) == (
        2,
        "quire: exact = on: a CPU has no exact kernels\n",
    )


def test_int8_weights_are_counted_as_they_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("random:8B", "--num-blocks", "700")
    _, plain = dry_run(capsys, *words)
    _, int8 = dry_run(capsys, *words, "--quantization", "int8")
    assert (plain["dtype"], int8["dtype"]) == ("bfloat16", "bfloat16, matrices as int8")
    assert (plain["weights"], int8["weights"]) == ("15.26 GiB", "7.63 GiB")


def test_what_does_not_fit_names_the_fewest_machines_that_hold_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of 24 GiB each. The start refuses it in the same words, before anything is loaded."""
    _, rows = dry_run(capsys, "random:32B")  # 61.02 GiB: three do not divide its heads
    ways = rows["to change"]
    four = "share it over 4 such machines: tensor_parallel_size = 4, nnodes = 4 (15."
    assert ways.startswith(four) and ways.endswith("of 24.00 GiB each), or take a smaller model")
    with pytest.raises(CapacityError) as refused:
        build_engine(EngineConfig(model="random:32B", device="cpu"), lambda _stage, _share: None)
    assert str(refused.value) == f"{rows['verdict'].removeprefix('does not fit: ')}; {ways}"
    shared = ("--tensor-parallel-size", "4", "--nnodes", "4", "--master-port", "7")
    code, rows = dry_run(capsys, "random:32B", *shared, "--master-addr", "10.0.0.1")
    assert (code, rows["memory"]) == (0, "96.00 GiB")
    assert rows["ranks"] == "4 on 4 nodes; sizes are of all of them together"
    _, rows = dry_run(capsys, "random:32B", "--quantization", "int8")
    assert "share it" not in rows["to change"]  # int8 cannot be shared


def test_small_sizes_are_shown_in_mib(capsys: pytest.CaptureFixture[str]) -> None:
    _, rows = dry_run(capsys, "pocket", "--num-blocks", "32")
    weights, cache = rows["weights"].split(" "), rows["KV cache"].split(" ")
    assert weights[1] == cache[1] == "MiB"
    assert float(weights[0]) > 5 and float(cache[0]) > 5


def test_a_device_that_is_not_here_is_told_with_what_a_dry_run_can_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as left:
        cli.main(["serve", "random:8B", "--dry-run", "--device", "cuda"])
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert told.startswith("quire: device = cuda: ") and "device = cpu, which shows what" in told

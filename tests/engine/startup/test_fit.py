"""Whether a configuration fits, and advice that is enough when it is followed."""

import logging
import re

import pytest
import torch

from quire.engine.config import EngineConfig
from quire.engine.errors import CapacityError
from quire.engine.model.config import ModelConfig
from quire.engine.startup import fit, sizing
from quire.engine.startup.build_engine import build_engine

GIB = 1 << 30
NUMBER = re.compile(r"(max_model_len|num_blocks|cpu_kv_gib) to at (?:most|least) ([\d.]+)")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """24 GiB, and no GPU."""
    monkeypatch.setattr(sizing, "total_memory", lambda _device: 24 * GIB)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A card of 24 GiB, one of them another process's."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (23 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 0)


def judged(shape: str, **options: object) -> tuple[fit.Verdict, sizing.SizingPlan]:
    config = EngineConfig(model=f"random:{shape}", **options)  # type: ignore[arg-type]
    plan = sizing.plan(config, ModelConfig.named_shape(shape))
    return fit.judge(config, plan), plan


def follow(shape: str, advice: str, **options: object) -> fit.Verdict:
    """The verdict once a piece of advice with numbers is followed to the letter."""
    found = NUMBER.findall(advice)
    assert found, advice
    changes = {name: float(v) if name == "cpu_kv_gib" else int(v) for name, v in found}
    return judged(shape, **{**options, **changes})[0]


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("shape", "options", "names"),
    [
        ("0.6B", {}, ["max_model_len", "cpu_kv_gib"]),
        ("8B", {}, ["max_model_len"]),  # 11 GiB of cache are not left beside the weights
        ("0.6B", {"num_blocks": 100}, ["max_model_len", "num_blocks"]),
        ("0.6B", {"num_blocks": 100, "max_model_len": 6401}, ["max_model_len", "num_blocks"]),
        ("0.6B", {"num_blocks": 5000}, ["num_blocks"]),
        ("8B", {"num_blocks": 5000}, ["num_blocks"]),
        ("0.6B", {"cpu_kv_gib": 40.0}, ["cpu_kv_gib"]),
        ("0.6B", {"cpu_kv_gib": 0.29, "max_model_len": 2000}, ["max_model_len", "cpu_kv_gib"]),
        ("4B", {"cpu_kv_gib": 0.003}, ["cpu_kv_gib"]),  # no room for a block
    ],
)
def test_advice_with_a_number_is_enough(
    shape: str, options: dict[str, object], names: list[str]
) -> None:
    verdict, _ = judged(shape, device="cpu", **options)
    assert not verdict.fits and verdict.reason
    pieces = [piece for piece in verdict.advice if NUMBER.search(piece)]
    assert [NUMBER.findall(piece)[0][0] for piece in pieces] == names
    for piece in pieces:
        assert follow(shape, piece, device="cpu", **options).fits, piece
    assert verdict.advice[-1] == "take a smaller model"
    assert not any("gpu_memory_utilization" in piece for piece in verdict.advice)


@pytest.mark.usefixtures("machine")
def test_weights_beyond_the_machine_do_not_fit() -> None:
    verdict, plan = judged("32B", device="cpu")
    assert plan.weight_bytes > 60 * GIB
    assert not verdict.fits and "61.02 GiB" in verdict.reason and "24.00 GiB" in verdict.reason
    assert verdict.advice == ("take a smaller model",)
    verdict, _ = judged("8B", device="cpu", dtype="float32")
    assert verdict.advice == ("take dtype = bfloat16", "take a smaller model")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("options", "helps"),
    [
        ({"cpu_kv_gib": 22.5}, True),  # half the weights are enough
        ({"cpu_kv_gib": 1000.0}, False),
        ({"cpu_kv_gib": 1.0}, False),  # too short a cache stays as short
        ({"num_blocks": 100}, False),
    ],
)
def test_a_narrower_dtype_is_named_where_it_helps_a_cpu(
    options: dict[str, object], helps: bool
) -> None:
    verdict, _ = judged("0.6B", device="cpu", dtype="float32", **options)
    assert not verdict.fits and ("take dtype = bfloat16" in verdict.advice) is helps


@pytest.mark.usefixtures("machine")
def test_exactly_one_request_fits_and_one_token_more_does_not() -> None:
    for block_size in (16, 64):
        options = {"device": "cpu", "block_size": block_size, "num_blocks": 4}
        verdict, plan = judged("0.6B", max_model_len=4 * block_size, **options)
        assert verdict.fits and not verdict.advice and plan.full_length_sequences == 1
        verdict, plan = judged("0.6B", max_model_len=4 * block_size + 1, **options)
        assert not verdict.fits and plan.full_length_sequences == 0
        assert str(4 * block_size) in verdict.reason and str(4 * block_size + 1) in verdict.reason


@pytest.mark.usefixtures("card")
def test_on_a_card_what_does_not_fit_is_a_verdict_and_no_error() -> None:
    verdict, plan = judged("32B")
    assert plan.num_blocks == 0 and not verdict.fits
    assert "61.02 GiB" in verdict.reason and "gpu_memory_utilization = 0.9" in verdict.reason
    assert verdict.advice == ("take a smaller model",), "no share is large enough"
    assert judged("8B", max_model_len=4096)[0].fits
    assert "take dtype = bfloat16" in judged("8B", dtype="float32")[0].advice


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(
    ("share", "options", "helps"),
    [
        (0.7, {"max_model_len": 8192}, True),  # the cache is too short
        (0.6, {"max_model_len": 4096}, True),  # the weights are too large
        (0.9, {}, True),
        (0.9, {"max_model_len": 40_960, "dtype": "float32"}, False),
        (1.0, {"dtype": "float32"}, False),  # there is no larger share
    ],
)
def test_a_larger_share_of_a_card_is_named_where_it_helps(
    share: float, options: dict[str, object], helps: bool
) -> None:
    options = {"enforce_eager": True, **options}
    verdict, _ = judged("8B", gpu_memory_utilization=share, **options)
    whole, _ = judged("8B", gpu_memory_utilization=1.0, **options)
    assert whole.fits is helps
    assert (f"raise gpu_memory_utilization = {share}" in verdict.advice) is helps
    assert share == 1.0 or not verdict.fits


@pytest.mark.usefixtures("card")
def test_blocks_that_were_asked_for_must_fit_into_a_card() -> None:
    verdict, _ = judged("0.6B", num_blocks=5000)
    assert not verdict.fits and "num_blocks to at most" in verdict.advice[0]
    assert follow("0.6B", verdict.advice[0], num_blocks=5000).fits


def start(caplog: pytest.LogCaptureFixture, **options: object) -> list[str]:
    """The warnings of a start."""
    caplog.clear()
    config = EngineConfig(model="random:tiny", device="cpu", block_size=16, **options)  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        build_engine(config, lambda _stage, _share: None)
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_start_warns_of_a_cache_shorter_than_a_request(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = start(caplog, num_blocks=10, max_model_len=161)
    assert "holds 160 tokens" in line and "max_model_len = 161" in line and "\n" not in line
    assert (
        "lower max_model_len to at most 160" in line and "raise num_blocks to at least 11" in line
    )
    assert start(caplog, num_blocks=10, max_model_len=160) == []


def test_it_names_what_sizes_the_cache(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = start(caplog, cpu_kv_gib=0.0001)
    assert "raise cpu_kv_gib to at least" in line and "num_blocks" not in line


@pytest.mark.usefixtures("card")
def test_a_model_too_large_for_a_card_names_the_fewest_that_hold_it() -> None:
    """Of 24 GiB, of which 0.9 less another's 1 GiB may be taken."""
    config = EngineConfig(model="random:32B")
    with pytest.raises(CapacityError, match=r"the weights take 61\.02 GiB, captured graphs") as no:
        build_engine(config, lambda _stage, _share: None)
    found = re.search(r"_size = (\d+) \(([\d.]+) GiB of ([\d.]+) GiB each\)", str(no.value))
    assert found is not None
    size, need, room = map(float, found.groups())
    assert (size, room) == (4, 20.6) and 61.02 / 4 < need < room


@pytest.mark.usefixtures("card")
def test_what_to_lower_on_a_card_is_its_share_or_the_number_that_was_given() -> None:
    config = EngineConfig(model="random:0.6B", gpu_memory_utilization=0.8)
    _, plan = judged("0.6B", gpu_memory_utilization=0.8)
    assert fit.what_to_lower(config, plan) == "lower gpu_memory_utilization = 0.8"
    assert fit.what_to_lower(config.replace(num_blocks=7), plan) == "lower num_blocks = 7"

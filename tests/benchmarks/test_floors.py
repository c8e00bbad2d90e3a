"""Floors: the published table, from the models' shapes."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from quire.engine.model.config import ModelConfig

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def floors() -> ModuleType:
    return _load("floors")


def _workload(floors: ModuleType, shape: str, name: str) -> float:
    found = floors.workloads(floors.Floors.of(ModelConfig.named_shape(shape)))
    return float(found[name][0])


@pytest.mark.parametrize(
    ("shape", "gigabytes", "kv_bytes", "batch_1", "batch_256"),
    [
        ("0.6B", 1.19, 114_688, 0.277, 7.38),
        ("1.7B", 3.44, 114_688, 0.800, 8.11),
        ("4B", 8.05, 147_456, 1.87, 11.6),
        ("8B", 15.14, 147_456, 3.52, 13.9),
        ("14B", 27.98, 163_840, 6.51, 19.1),
        ("32B", 63.97, 262_144, 14.9, 36.7),
        ("30B-A3B", 60.4, 98_304, 1.42, 20.1),
        ("8B-fp8", 8.19, 147_456, 1.91, 11.64),
    ],
)
def test_floors_by_model(
    floors: ModuleType,
    shape: str,
    gigabytes: float,
    kv_bytes: int,
    batch_1: float,
    batch_256: float,
) -> None:
    model = floors.Floors.of(ModelConfig.named_shape(shape))
    assert model.weight_bytes / 1e9 == pytest.approx(gigabytes, rel=0.02)
    assert model.kv_bytes == kv_bytes
    assert model.decode(1, 128) * 1e3 == pytest.approx(batch_1, rel=0.02)
    assert model.decode(256, 1024) * 1e3 == pytest.approx(batch_256, rel=0.02)


@pytest.mark.parametrize(
    ("name", "small", "large"),
    [
        ("nano-256", 36_200, 12_700),
        ("decode-b8", 0.523, 3.84),
        ("decode-b64", 2.24, 6.05),
        ("decode-b256", 8.26, 15.0),
        ("prefill", 791_000, 55_700),
    ],
)
def test_floors_by_workload(floors: ModuleType, name: str, small: float, large: float) -> None:
    assert _workload(floors, "0.6B", name) == pytest.approx(small, rel=0.02)
    assert _workload(floors, "8B", name) == pytest.approx(large, rel=0.02)


def test_nano_256_is_the_published_workload(floors: ModuleType) -> None:
    prompts, outputs = floors.nano_256()
    assert sum(map(len, prompts)) == 142_827
    assert sum(outputs) == 133_966


def test_a_cached_prefix_is_read_not_computed(floors: ModuleType) -> None:
    model = floors.Floors.of(ModelConfig.named_shape("0.6B"))
    assert model.first_token(3000, 2944) < model.first_token(3000) / 5
    assert model.first_token(3000, 2944) > model.weight_bytes / 4.3e12


def test_of_experts_only_those_that_are_met_are_read(floors: ModuleType) -> None:
    """At one row 8 of 128, at a few those that they take, at many all; each row computes 8."""
    model = floors.Floors.of(ModelConfig.named_shape("30B-A3B"))
    read = [model.read_bytes(rows) / 1e9 for rows in (1, 2, 64, 4096)]
    assert read == pytest.approx([6.08, 9.51, 59.5, 60.44], rel=0.01)
    assert model.mixture.met(2) == pytest.approx(8 + 8 * 120 / 128)
    assert model.read_bytes(4096) == pytest.approx(model.weight_bytes)
    active = 2 * (model.layer_parameters + model.head_parameters) * 4096
    assert model.products(4096) == pytest.approx(active / 790e12)
    assert active / 4096 == pytest.approx(6.08e9, rel=0.01)


def test_a_decode_loop_is_counted_at_the_contexts_it_has(floors: ModuleType) -> None:
    """The mean over the loop is what its steps take one by one, not a step at the prompt's end."""
    model = floors.Floors.of(ModelConfig.named_shape("8B"))
    steps = [model.decode(64, 1024 + step) for step in range(1, 257)]
    assert model.decode_loop(64, 1024, 256) == pytest.approx(sum(steps) / 256, rel=1e-9)


def test_fp8_halves_the_layers_and_not_the_head(floors: ModuleType) -> None:
    cards = sys.modules["cards"]
    wide, narrow = (floors.Floors.of(ModelConfig.named_shape(name)) for name in ("8B", "8B-fp8"))
    assert narrow.weight_bytes == wide.layer_parameters + 2 * wide.head_parameters
    assert narrow.prefill_rate(1024) == pytest.approx(109_000, rel=0.01)
    assert narrow.kv_read(1) == wide.kv_read(1)
    old = cards.Card("old", cards.H200.copy_bytes, cards.H200.matmul_flops)
    with pytest.raises(ValueError, match="old: its rate of FP8 products is not measured"):
        floors.Floors.of(ModelConfig.named_shape("8B-fp8"), old)


def test_floors_follow_the_card(floors: ModuleType) -> None:
    cards = sys.modules["cards"]
    shape = ModelConfig.named_shape("8B")
    slow = cards.Card("half", cards.H200.copy_bytes / 2, cards.H200.matmul_flops / 4)
    of = floors.Floors.of
    assert of(shape, slow).decode(1, 128) == pytest.approx(2 * of(shape).decode(1, 128))
    assert of(shape, slow).prefill(1024) == pytest.approx(4 * of(shape).prefill(1024))
    assert cards.this_card() == cards.H200 or cards.this_card().copy_bytes > 0


@pytest.mark.parametrize(
    ("wanted", "fits", "rows"), [(256, None, 256), (256, 300, 256), (256, 171, 168), (64, 5, 5)]
)
def test_a_batch_that_does_not_fit_is_the_largest_that_does(
    floors: ModuleType, wanted: int, fits: int | None, rows: int
) -> None:
    assert floors.largest_batch(wanted, fits) == rows


@pytest.mark.usefixtures("floors")
def test_shares_of_floors() -> None:
    common = sys.modules["common"]
    time = common.result_row("decode-b1", "0.6B", "quire", [0.9, 0.5, 0.7], "ms", 0.35)
    assert time["value"] == 0.7
    assert time["share_of_floor"] == pytest.approx(0.5)
    rate = common.result_row("prefill", "0.6B", "quire", [100.0], "tokens/s", 400.0)
    assert rate["share_of_floor"] == 0.25
    assert common.result_row("x", "y", "z", [1.0], "us")["share_of_floor"] is None


@pytest.mark.usefixtures("floors")
def test_results_say_where_they_come_from(tmp_path: Path) -> None:
    common = sys.modules["common"]
    path = tmp_path / "deep" / "x.json"
    common.write_results(path, [{"workload": "w"}], ["benchmarks/x.py", "--quick"])
    document = json.loads(path.read_text())
    assert document["command"] == "python benchmarks/x.py --quick"
    assert document["rows"] == [{"workload": "w"}]
    assert document["versions"]["torch"]
    assert document["commit"]
    assert set(document) == {"machine", "versions", "commit", "command", "rows"}

"""What cannot run is refused at start, by name, with what is supported or the option to turn."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from quire.engine.config import BLOCK_SIZES, DTYPES, EngineConfig
from quire.engine.errors import CapacityError, ConfigError
from quire.engine.model.config import ModelConfig
from quire.engine.model.registry import build_model
from quire.engine.startup import build_rank, sizing
from quire.engine.startup.build_engine import Engine, build_engine
from quire.kernels import reference, support

GIB = 1 << 30
TINY = ModelConfig.named_shape("tiny")


def listed(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values))


def start(**options: Any) -> Engine:
    small: dict[str, Any] = {"model": "random:tiny", "device": "cpu", "max_num_seqs": 2}
    return build_engine(EngineConfig(**(small | options)), lambda _stage, _share: None)


# ---------------------------------------------------------------- what no kernel supports


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"head_dim": 80}, f"head_dim 80 is not supported: one of {listed(support.HEAD_DIMS)}"),
        ({"dtype": torch.float64}, "dtype torch.float64 is not supported: one of torch.bfloat16"),
        (
            {"block_size": 48},
            f"block_size 48 is not supported: one of {listed(support.BLOCK_SIZES)}",
        ),
        ({"group": 17}, "17 query heads a kv head are not supported: 1 to 16"),
        ({"group": 0}, "0 query heads a kv head are not supported: 1 to 16"),
    ),
)
def test_kernels_refuse_by_name(change: dict[str, Any], message: str) -> None:
    whole: dict[str, Any] = {
        "head_dim": 128,
        "dtype": torch.bfloat16,
        "block_size": 64,
        "group": 2,
    }
    support.check_supported(**whole)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        support.check_supported(**(whole | change))


def test_refused_before_any_weight_is_made() -> None:
    """On a GPU the model is refused as soon as it is known; no device is needed to know that."""
    odd = replace(TINY, head_dim=48)
    with pytest.raises(ConfigError, match="head_dim 48 is not supported: one of 16, 32"):
        build_model(odd, reference, dtype=torch.bfloat16, device=torch.device("cuda"))
    build_model(odd, reference, dtype=torch.bfloat16, device=torch.device("meta"))


def test_a_gpu_too_old_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Tesla T4")
    found = [(8, 0), (7, 5)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: found[-1])
    message = "device = cuda: Tesla T4 has compute capability 7.5: 8.0 or newer is needed"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        build_model(TINY, reference, dtype=torch.float32, device=torch.device("cuda"))
    found.pop()
    support.check_device(torch.device("cuda"))


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"block_size": 48}, f"block_size = 48: supported: {listed(BLOCK_SIZES)}"),
        ({"dtype": "float8"}, f"dtype = 'float8': supported: {listed(DTYPES)}"),
        ({"kv_cache_dtype": "fp16"}, "kv_cache_dtype = 'fp16': supported: auto, fp8"),
        ({"quantization": "int4"}, "quantization = 'int4': supported: auto, fp8, int8"),
        ({"device": "tpu"}, "device = 'tpu': supported: auto, cpu, cuda"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size = 0: must be at least 1"),
        ({"tensor_parallel_size": 65}, "tensor_parallel_size = 65: must be at most 64"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size = 2: the engine needs its own process"),
        ({"dtype": "float16"}, "dtype = float16: not supported on the CPU (float32, bfloat16)"),
        ({"max_model_len": 5000}, "max_model_len = 5000: the model has 4096 positions"),
        ({"max_num_batched_tokens": 1}, "max_num_batched_tokens = 1: must be at least 2"),
        ({"num_blocks": 1}, "num_blocks = 1: must be at least 2"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization = 1.5: must be above 0"),
        ({"cpu_kv_gib": 0.0}, "cpu_kv_gib = 0.0: must be above 0"),
        ({"cpu_kv_gib": math.inf}, "cpu_kv_gib = inf: must be above 0 and at most 1048576"),
        ({"cpu_kv_gib": math.nan}, "cpu_kv_gib = nan: must be above 0"),
        ({"model": "random:7B"}, "shape '7B': unknown; known: 0.6B"),
        ({"model": ""}, "model is empty"),
    ),
)
def test_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        start(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"device = cuda: .* \(try device = cpu\)"):
        start(device="cuda")


# ---------------------------------------------------------------- memory


def test_no_room_for_a_block_names_budget_block_and_option() -> None:
    with pytest.raises(CapacityError) as caught:
        start(cpu_kv_gib=1e-6)
    text = str(caught.value)
    assert "cpu_kv_gib = 1e-06" in text
    block = TINY.kv_bytes_per_token(torch.float32) * 64 / GIB
    assert f"a block of 64 tokens takes {block:.4f} GiB" in text


def test_gpu_budget_names_what_takes_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (20 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 10 * GIB)
    config = EngineConfig(model="random:0.6B", gpu_memory_utilization=0.5)
    budget, what = sizing.gpu_budget(config, torch.device("cuda"), 12 * GIB)
    assert budget == (40 - 50 - 12) * GIB
    shape = ModelConfig.named_shape("0.6B")
    with pytest.raises(CapacityError) as caught:
        sizing.cache_blocks(config, shape, torch.bfloat16, budget, what)
    for said in (
        "gpu_memory_utilization = 0.5 of 80.0 GiB",
        "less 12.0 GiB for weights and the largest step",
        "less 50.0 GiB of others",
        "leaves -22.00 GiB",
        "a block of 64 tokens takes 0.0068 GiB",
    ):
        assert said in str(caught.value)


def test_more_blocks_than_there_is_memory() -> None:
    """Asked for by number, so nothing was sized: the allocation itself fails."""
    blocks = (1 << 31) - 2  # more is refused as an option
    with pytest.raises(CapacityError) as caught:
        start(num_blocks=blocks)
    text = str(caught.value)
    assert text.startswith("out of memory for the KV cache: ")
    assert text.endswith(f"; lower num_blocks = {blocks}")
    wanted = (blocks + 1) * 64 * TINY.kv_bytes_per_token(torch.float32) / GIB
    assert f"{wanted:.2f} GiB are needed" in text


def test_a_cache_that_cannot_be_allocated_names_the_option_that_made_it_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(build_rank, "allocate_cache", full)
    with pytest.raises(CapacityError, match=r"; lower cpu_kv_gib = 0\.5$"):
        start(cpu_kv_gib=0.5)


def test_out_of_device_memory_says_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (GIB, 80 * GIB))
    cuda = torch.device("cuda")
    with pytest.raises(CapacityError) as caught:
        with sizing.room_for("the weights", 3 * GIB, cuda, "lower that = 7"):
            raise torch.OutOfMemoryError("CUDA out of memory")
    assert str(caught.value) == (
        "out of memory for the weights: 3.00 GiB are needed, and 1.00 of 80.00 GiB are free; "
        "lower that = 7"
    )


def test_other_faults_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        with sizing.room_for("the weights", 1, torch.device("cpu"), ""):
            raise RuntimeError("shapes do not fit")


def test_slots_that_do_not_fit_name_max_num_seqs(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **_more: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(build_rank, "SlotState", none_left)
    with pytest.raises(CapacityError, match=r"the slots of running requests.*max_num_seqs = 2"):
        start()

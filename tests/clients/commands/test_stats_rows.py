"""What the table of statistics says: no more than is known."""

from quire.clients.commands.stats import as_dict, rows
from quire.v1 import inference_pb2 as pb


def memory_of(device: str) -> str:
    response = pb.StatsResponse(
        model=pb.ModelInfo(device=device),
        requests=pb.RequestStats(),
        memory=pb.DeviceMemory(
            total_bytes=8 << 30, weights_bytes=1 << 20, kv_cache_bytes=1 << 30, peak_bytes=300 << 20
        ),
    )
    return dict(rows(response))["memory"]


def test_a_peak_below_the_cache_is_told_as_what_it_is_on_a_cpu() -> None:
    """A process's resident memory holds of the cache what was written."""
    told = memory_of("cpu")
    assert "KV cache 1.0 GiB," in told
    assert told.endswith("process peak 300.0 MiB (cache counted as it fills), total 8.0 GiB")


def test_the_caches_data_type_stands_beside_its_size() -> None:
    response = pb.StatsResponse(cache=pb.CacheStats(dtype="float8_e4m3fn"))
    response.memory.kv_cache_bytes = 1 << 30
    assert "KV cache 1.0 GiB (float8_e4m3fn), total" in dict(rows(response))["memory"]


def test_a_gpus_peak_is_what_was_allocated() -> None:
    assert memory_of("cuda:0 NVIDIA H100").endswith("peak 300.0 MiB, total 8.0 GiB")


def test_counters_that_were_not_told_are_no_zeros() -> None:
    """To others than operators a server tells what it serves, and no counter."""
    told = pb.StatsResponse(cache=pb.CacheStats(blocks_total=9, block_size=64))
    told.memory.total_bytes = 8 << 30
    shown = dict(rows(told))
    assert list(shown) == ["model", "cache blocks", "counters", "memory"]
    assert (shown["cache blocks"], "operator" in shown["counters"]) == ("9 × 64 tokens", True)
    assert shown["memory"] == "weights 0 B, KV cache 0 B, total 8.0 GiB"
    assert as_dict(told)["cache"] == {"block_size": 64, "blocks_total": 9}
    told.requests.SetInParent()
    assert dict(rows(told))["requests"] == "0 running, 0 waiting"

"""The scraped page: the names that dashboards and alerts stand on, and no label that could grow."""

import asyncio
import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from support.fake_engine import Device
from support.harness import ask, first, generate, run, serving

NAMES = {
    "quire_time_to_first_token_seconds", "quire_inter_token_latency_seconds",
    "quire_request_queue_seconds", "quire_request_time_per_output_token_seconds",
    "quire_e2e_request_latency_seconds",
    "quire_requests_running", "quire_requests_waiting", "quire_requests_finished", "quire_rpcs",
    "quire_prompt_tokens", "quire_generation_tokens", "quire_delivered_tokens",
    "quire_kv_cache_usage_ratio", "quire_prefix_cache_queries", "quire_prefix_cache_hits",
    "quire_prefix_cache_evictions", "quire_preemptions", "quire_engine_steps",
    "quire_engine_steps_failed", "quire_engine_step_seconds", "quire_step_hung",
    "quire_logits_not_finite",
    "quire_device_memory_bytes", "quire_device_memory_peak_bytes",
}  # fmt: skip
KINDS = ("prefill", "decode", "mixed")
SCHEDULERS = {  # by the name of ours that holds the same, without its prefix
    "requests_running": ("gauge", "num_requests_running"),
    "requests_waiting": ("gauge", "num_requests_waiting"),
    "kv_cache_usage_ratio": ("gauge", "kv_cache_usage_perc"),
    "prefix_cache_queries": ("counter", "prefix_cache_queries"),
    "prefix_cache_hits": ("counter", "prefix_cache_hits"),
    "prompt_tokens": ("counter", "prompt_tokens"),
    "generation_tokens": ("counter", "generation_tokens"),
    "time_to_first_token_seconds": ("histogram", "time_to_first_token_seconds"),
    "inter_token_latency_seconds": ("histogram", "inter_token_latency_seconds"),
    "request_time_per_output_token_seconds": (
        "histogram",
        "request_time_per_output_token_seconds",
    ),
    "e2e_request_latency_seconds": ("histogram", "e2e_request_latency_seconds"),
}
LABELS = {"le", "reason", "kind", "method", "code"}
ABOUT = {
    "version", "python", "model_name", "fingerprint", "device", "dtype", "block_size",
    "num_gpu_blocks",
}  # fmt: skip


def test_the_page_has_every_name_and_no_label_by_key_peer_or_request() -> None:
    async def test() -> None:
        async with serving(Device(step_seconds=0.001), metrics_port=0) as running:
            await generate(running, ask([300, 301], request_id="somebody"))
            await generate(running, ask([300], top_p=7.0))
            url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"
            page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        families = {f.name: f for f in text_string_to_metric_families(page)}
        assert families.keys() >= NAMES | {"quire_build_info", "vllm:cache_config_info"}
        assert {"process_cpu_seconds", "process_open_fds"} <= families.keys()
        samples = [sample for family in families.values() for sample in family.samples]
        assert {label for sample in samples for label in sample.labels} <= LABELS | ABOUT
        about = families["quire_build_info"].samples[0].labels
        assert about["model_name"] == "fake" and about["version"]
        waiting = families["vllm:num_requests_waiting"].samples[0]
        assert (waiting.labels, waiting.value) == ({"model_name": "fake"}, 0.0)
        assert "somebody" not in page
        values = {(s.name, *sorted(s.labels.values())): s.value for s in samples}
        assert values["quire_requests_finished_total", "stop"] == 1
        assert values["quire_rpcs_total", "Generate", "INVALID_ARGUMENT"] == 1
        assert values["quire_delivered_tokens_total",] == 3
        counts = {kind: values["quire_engine_step_seconds_count", kind] for kind in KINDS}
        assert counts["prefill"] == 1 and counts["decode"] >= 2 and counts["mixed"] == 0
        assert values["quire_engine_step_seconds_sum", "decode"] > 0.002

    run(test)


def samples(family: Any) -> dict[frozenset[tuple[str, str]], float]:
    """Values by labels and the name's end (`_bucket`, `_total`)."""
    end = len(family.name)
    return {
        frozenset({("", sample.name[end:]), *sample.labels.items()}): sample.value
        for sample in family.samples
    }


def test_schedulers_find_the_same_numbers_under_the_names_that_they_know() -> None:
    async def test() -> None:
        async with serving(Device(step_seconds=0.001), metrics_port=0) as running:
            call = running.stub.Generate(ask([301] * 40, max_tokens=1500, ignore_eos=True))
            for _ in range(2):
                await first(call)
            for _ in range(2):
                await generate(running, ask([300] * 40, max_tokens=4))
            running.device.hold()  # or it may end while it is looked at
            url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"
            page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
            call.cancel()
        families = {f.name: f for f in text_string_to_metric_families(page)}
        label = ("model_name", "fake")
        for name, (kind, known_as) in SCHEDULERS.items():
            ours, theirs = families[f"quire_{name}"], families[f"vllm:{known_as}"]
            assert ours.type == theirs.type == kind
            labelled = {key | {label}: value for key, value in samples(ours).items()}
            assert samples(theirs) == labelled
        values = {s.name: s.value for f in families.values() for s in f.samples}
        assert values["vllm:num_requests_running"] == 1
        assert 0 < values["vllm:kv_cache_usage_perc"] < 1
        assert values["vllm:prompt_tokens_total"] == 120
        assert values["vllm:prefix_cache_queries_total"] == 120
        assert values["vllm:prefix_cache_hits_total"] == 39  # all but the token to compute
        assert values["vllm:generation_tokens_total"] >= 8
        assert values["vllm:time_to_first_token_seconds_count"] == 3
        assert values["vllm:request_time_per_output_token_seconds_count"] == 2
        assert values["vllm:e2e_request_latency_seconds_count"] == 2
        (config,) = families["vllm:cache_config_info"].samples
        assert config.value == 1 and config.labels == {"block_size": "16", "num_gpu_blocks": "512"}

    run(test)


def test_before_the_model_is_there_only_our_own_names_are() -> None:
    async def test() -> None:
        async with serving(load=False, metrics_port=0) as running:
            url = f"http://127.0.0.1:{running.server.metrics_port}/metrics"
            page = await asyncio.to_thread(lambda: urllib.request.urlopen(url).read().decode())
        assert "quire_time_to_first_token_seconds_bucket" in page and "vllm:" not in page

    run(test)

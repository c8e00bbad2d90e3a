"""The scraped page: the names that dashboards and alerts stand on, and no label that could grow."""

import asyncio
import urllib.request

from prometheus_client.parser import text_string_to_metric_families
from support.fake_engine import Device
from support.harness import ask, generate, run, serving

NAMES = {
    "quire_time_to_first_token_seconds", "quire_inter_token_latency_seconds",
    "quire_request_queue_seconds", "quire_e2e_request_latency_seconds",
    "quire_requests_running", "quire_requests_waiting", "quire_requests_finished", "quire_rpcs",
    "quire_prompt_tokens", "quire_generation_tokens", "quire_delivered_tokens",
    "quire_kv_cache_usage_ratio", "quire_prefix_cache_queries", "quire_prefix_cache_hits",
    "quire_prefix_cache_evictions", "quire_preemptions", "quire_engine_steps",
    "quire_engine_steps_failed", "quire_engine_step_seconds", "quire_step_hung",
    "quire_logits_not_finite",
    "quire_device_memory_bytes", "quire_device_memory_peak_bytes",
}  # fmt: skip
KINDS = ("prefill", "decode", "mixed")
SCHEDULERS = {
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
}  # fmt: skip
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
        assert families.keys() >= NAMES | SCHEDULERS | {"quire_build_info"}
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

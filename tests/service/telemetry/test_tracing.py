"""Spans of OpenTelemetry, through its own in-memory exporter."""

import asyncio
import subprocess
import sys
from typing import Any

import grpc
import pytest
from support.fake_engine import Device
from support.harness import ask, first, generate, read, run, serving
from support.patience import PATIENCE

from quire.engine.errors import ConfigError
from quire.service.telemetry.tracing import NoTracer, OtelTracer, make_tracer

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="the extra `otel` is not installed")

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def spans() -> Any:
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    exporter.tracer = OtelTracer(provider)
    return exporter


async def ended(spans: Any, count: int) -> list[Any]:
    """The spans, once there are so many: one is made after its client has its status."""
    async with asyncio.timeout(PATIENCE):
        while len(spans.get_finished_spans()) < count:
            await asyncio.sleep(0.005)
    return list(spans.get_finished_spans())


def test_a_call_is_one_span_under_the_callers_with_its_three_events(spans: Any) -> None:
    async def test() -> None:
        async with serving(Device(step_seconds=0.002), tracer=spans.tracer) as running:
            metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
            request = ask([300, 301], request_id="mine", n=2)
            answer = await generate(running, request, metadata=metadata)
            assert answer.code is grpc.StatusCode.OK
            (span,) = await ended(spans, 1)
        assert f"{span.context.trace_id:032x}" == TRACE
        assert f"{span.parent.span_id:016x}" == PARENT
        assert span.name == "quire.v1.InferenceService/Generate"
        assert span.kind.name == "SERVER"
        assert [event.name for event in span.events] == ["queued", "prefill", "decode"]
        times = [event.timestamp for event in span.events]
        times = [span.start_time, *times, span.end_time]
        assert times == sorted(times)
        told = span.attributes
        assert told["rpc.grpc.status_code"] == 0
        assert told["quire.request_id"] == "mine"
        assert told["quire.prompt_tokens"] == 2
        assert told["quire.completion_tokens"] == 6
        assert told["quire.finish"] == "stop,stop"

    run(test)


def test_calls_that_are_refused_cancelled_or_fail_have_their_span_too(spans: Any) -> None:
    async def test() -> None:
        device = Device(step_seconds=0.002)
        async with serving(device, tracer=spans.tracer) as running:
            await generate(running, ask([300], top_p=7.0))
            call = running.stub.Generate(ask([300], max_tokens=500, ignore_eos=True))
            await first(call)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await read(call)
            await ended(spans, 2)
            await running.idle()  # or the cancelled call's last step would be the one that fails
            device.fail = RuntimeError("spilled coffee")
            await generate(running, ask([300], max_tokens=500, ignore_eos=True))
            refused, cancelled, failed = await ended(spans, 3)
        assert refused.attributes["rpc.grpc.status_code"] == 3
        assert not refused.events and refused.parent is None
        assert cancelled.attributes["rpc.grpc.status_code"] == 1
        assert cancelled.attributes["quire.finish"] == "cancelled"
        assert cancelled.status.is_unset
        assert failed.attributes["rpc.grpc.status_code"] == 13
        assert not failed.status.is_ok and failed.status.description == "INTERNAL"

    run(test)


def test_metadata_that_names_no_context_begins_a_trace_of_its_own(spans: Any) -> None:
    async def test() -> None:
        async with serving(tracer=spans.tracer) as running:
            metadata = (("traceparent", "nonsense"), ("odd-bin", b"\xff"))
            await generate(running, ask([300]), metadata=metadata)
            (span,) = await ended(spans, 1)
        assert span.parent is None

    run(test)


def test_traces_are_off_unless_asked_for() -> None:
    assert isinstance(make_tracer(None, {}), NoTracer)
    off = {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    assert isinstance(make_tracer(None, off), NoTracer)
    for tracer in (
        make_tracer("http://127.0.0.1:9", {}),
        make_tracer(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}),
    ):
        assert isinstance(tracer, OtelTracer)
        tracer.close()


def test_without_the_package_the_option_is_refused_and_the_variable_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"otlp_endpoint = http://c:4317.*\.\[otel\]"):
        make_tracer("http://c:4317", {})
    variable = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}
    assert isinstance(make_tracer(None, variable), NoTracer)
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in caplog.text


def test_the_server_imports_without_the_package() -> None:
    hidden = "import sys; sys.modules['opentelemetry'] = None; import quire.service.app.server"
    subprocess.run([sys.executable, "-c", hidden], check=True, timeout=PATIENCE)

"""OpenTelemetry traces: one span a call that the engine runs, made when the call has ended.

Invariant: serving a call never waits for a trace, and costs nothing where none are asked for. The
span is a child of the context in the call's metadata (`traceparent`), if there is one. Its events:
`queued` at acceptance, `prefill` when the first completion is scheduled, `decode` at its first
token. No span holds text of a prompt or an output.

Own code, not gRPC's interceptor, which does not know handlers that stream. The packages come with
the extra `otel`.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from quire.engine.errors import ConfigError
from quire.service.errors import OtherContext

try:
    from opentelemetry import trace
    from opentelemetry.propagate import extract
except ImportError:  # the extra is not installed, and no OtelTracer is made
    pass

log = logging.getLogger("quire.service")

SpanOf = tuple[str, Mapping[str, str | int]]  # a span's name, and what its protocol tells
SERVICE = "quire.v1.InferenceService"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_LAST_EXPORT = 2.0  # seconds that the last spans get to be sent when the server ends
_FAULTS = ("INTERNAL", "UNAVAILABLE", "UNKNOWN")

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Times:
    """When an accepted call reached each stage, in seconds since its beginning; None: it did not
    get there."""

    queued: float | None = None
    prefill: float | None = None
    decode: float | None = None


@dataclass(frozen=True, slots=True)
class EndedCall:
    """The data of one call's span. began_ns, ended_ns: unix time in nanoseconds."""

    name: str
    metadata: Metadata
    began_ns: int
    ended_ns: int
    code: grpc.StatusCode
    times: Times
    attributes: Mapping[str, str | int]

    @classmethod
    def of(
        cls,
        method: str,
        context: Any,
        began: float,
        began_ns: int,
        code: grpc.StatusCode,
        times: Times,
        told: Mapping[str, str | int],
    ) -> "EndedCall":
        """A call of this method that ends now. began: time.monotonic()."""
        ended_ns = began_ns + round((time.monotonic() - began) * 1e9)
        span = context.span(code) if isinstance(context, OtherContext) else grpc_span(code, method)
        metadata = context.invocation_metadata() or ()
        return cls(span[0], metadata, began_ns, ended_ns, code, times, {**span[1], **told})


def grpc_span(code: grpc.StatusCode, method: str) -> SpanOf:
    """The span of a call that came over gRPC."""
    return f"{SERVICE}/{method}", {
        "rpc.system": "grpc",
        "rpc.service": SERVICE,
        "rpc.method": method,
        "rpc.grpc.status_code": code.value[0],
    }


class Tracer(Protocol):
    """Where the spans of ended calls are sent."""

    active: bool

    def ended(self, call: EndedCall) -> None:
        """One call has ended."""

    def close(self) -> None:
        """Send what is left; returns within a few seconds."""


class NoTracer:
    """Traces are not asked for."""

    active = False

    def ended(self, call: EndedCall) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class OtelTracer:
    """Spans through OpenTelemetry's SDK."""

    active = True

    def __init__(self, provider: Any) -> None:
        """provider: an opentelemetry.sdk.trace.TracerProvider."""
        self._provider = provider
        self._tracer = provider.get_tracer("quire")

    def ended(self, call: EndedCall) -> None:
        """Make the span, as long as the call was."""
        carrier = {key: value for key, value in call.metadata if isinstance(value, str)}
        span = self._tracer.start_span(
            call.name,
            context=extract(carrier),
            kind=trace.SpanKind.SERVER,
            start_time=call.began_ns,
            attributes=dict(call.attributes),
        )
        for name in ("queued", "prefill", "decode"):
            seconds = getattr(call.times, name)
            if seconds is not None:
                span.add_event(name, timestamp=call.began_ns + round(seconds * 1e9))
        if call.code.name in _FAULTS:
            span.set_status(trace.StatusCode.ERROR, call.code.name)
        span.end(call.ended_ns)

    def close(self) -> None:
        """Send what is left. A collector that does not answer is not waited for."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_LAST_EXPORT)


def make_tracer(endpoint: str | None, environment: Mapping[str, str] = os.environ) -> Tracer:
    """A tracer by the option otlp_endpoint, else by OpenTelemetry's own variables. Raises
    ConfigError."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return NoTracer()
    asked = next((name for name in _ENDPOINTS if environment.get(name)), None)
    if endpoint is None and asked is None:
        return NoTracer()
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        if endpoint is not None:
            raise ConfigError(
                f"otlp_endpoint = {endpoint}: needs OpenTelemetry; "
                "in a checkout: pip install '.[otel]'"
            ) from error
        log.warning("%s is set, but OpenTelemetry is not installed: no traces", asked)
        return NoTracer()
    insecure = True if endpoint is not None and endpoint.startswith("http://") else None
    provider = TracerProvider(resource=_resource(environment))
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=insecure)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return OtelTracer(provider)


def _resource(environment: Mapping[str, str]) -> Any:
    """The service's name is `quire` unless OpenTelemetry's variables name it."""
    from opentelemetry.sdk.resources import Resource

    named = environment.get("OTEL_SERVICE_NAME") or "service.name=" in environment.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    )
    return Resource.create({} if named else {"service.name": "quire"})

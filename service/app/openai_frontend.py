"""Builds the OpenAI API and opens its port beside gRPC's, over the same servicer.

Invariant: it never keeps gRPC from serving: if its port is taken, one line of the log says so. It
admits the same callers as gRPC, with the same keys, certificates and limits.
"""

import asyncio
import json
import logging
import shlex
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client.registry import Collector
from starlette.types import ASGIApp

from quire.service.admission.intake import Places
from quire.service.app import ports
from quire.service.lifecycle import Lifecycle
from quire.service.openai.app import make_app
from quire.service.openai.bodies import Bodies
from quire.service.openai.generation import Generation
from quire.service.openai.http_server import HttpServer, tls_context
from quire.service.openai.info_endpoints import InfoEndpoints
from quire.service.openai.request_guard import AllowedHosts, RequestGuard
from quire.service.openai.request_reader import RequestReader
from quire.service.openai.tokens import Tokens
from quire.service.openai.vectors import Vectors
from quire.service.rpc.call_admission import AccessControl
from quire.service.rpc.call_guard import CallGuard
from quire.service.rpc.servicer import InferenceServicer
from quire.service.security.credentials import Security
from quire.service.settings import ServiceConfig, listed
from quire.service.text.workers import PromptWorkers

log = logging.getLogger("quire.service")


@dataclass(frozen=True, slots=True)
class Parts:
    """What the HTTP API shares with gRPC. max_body: in bytes. connections: the most that may be
    open."""

    servicer: InferenceServicer
    access_control: AccessControl
    lifecycle: Lifecycle
    call_guard: CallGuard
    places: Places
    workers: PromptWorkers
    security: Security
    collectors: Sequence[Collector]
    hangs: Callable[[], bool]
    version: str
    model: str
    max_body: int
    connections: int


async def open_frontend(
    service: ServiceConfig, parts: Parts, sockets: Sequence[socket.socket] | None = None
) -> HttpServer | None:
    """sockets: listening already; by default opened by the options. None: the port cannot be
    opened."""
    if sockets is None:
        try:
            sockets = await asyncio.to_thread(ports.listen, service.http_host, service.http_port)
        except OSError as error:
            log.warning(
                "no OpenAI API: cannot listen on %s:%d: %s; %s",
                service.http_host,
                service.http_port,
                error.strerror or error,
                ports.elsewhere(error, "http_"),
            )
            return None
    security = parts.security
    context = None
    if security.tls is not None:
        context = tls_context(security.tls, mutual=security.mutual)
    server = HttpServer(_app(service, parts), parts.connections, service.write_stall_seconds)
    await server.start(sockets, context)
    return server


def _app(service: ServiceConfig, parts: Parts) -> ASGIApp:
    authenticator = parts.access_control.authenticator
    guarded = authenticator.required or parts.security.mutual
    hosts = AllowedHosts(service.http_host, listed(service.http_names), guarded=guarded)
    guard = RequestGuard(hosts, authenticator, parts.call_guard)
    reader = RequestReader(guard, Bodies(parts.places, parts.max_body), parts.workers)
    return make_app(
        guard,
        Generation(parts.servicer, reader, parts.model),
        Vectors(parts.servicer, reader, parts.model),
        InfoEndpoints(
            parts.servicer, parts.lifecycle, parts.version, parts.collectors, parts.hangs
        ),
        Tokens(parts.servicer, reader, parts.model),
        listed(service.cors_origin),
    )


def lines_to_paste(service: ServiceConfig, port: int, model: str) -> str:
    """Shell lines with the API's address and two first calls."""
    host = service.http_host
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    url = f"{'https' if service.tls_cert else 'http'}://{shown}:{port}/v1"
    key = "YOUR-KEY" if service.api_keys else "none"
    asked = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    body = json.dumps(asked, ensure_ascii=False)  # which is Python as well
    bearer = '-H "Authorization: Bearer $OPENAI_API_KEY" ' if service.api_keys else ""
    python = (
        "from openai import OpenAI; print(OpenAI().chat.completions.create("
        f"**{body}).choices[0].message.content)"
    )
    return "\n".join(
        (
            f"OpenAI API on {url}",
            f"export OPENAI_BASE_URL={url} OPENAI_API_KEY={key}",
            f"curl $OPENAI_BASE_URL/chat/completions {bearer}"
            f"-H 'Content-Type: application/json' -d {shlex.quote(body)}",
            f"python -c {shlex.quote(python)}",
        )
    )

"""One HTTP request in place of a gRPC context: who calls, with which headers.

Invariant: clients are known by the names that they have over gRPC (their key, their certificate,
their address), so limits, shares and logs see one client, whichever API it uses.
"""

import ssl
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from starlette.types import Scope

from quire.clients.openai.errors import status_of
from quire.service.errors import OtherContext
from quire.service.security.auth import HEADER

MESSAGES = "/v1/messages"  # Anthropic's path, and the beginning of its others
_THEIR_HEADER = "x-api-key"
_CN = "commonName"
Certificate = Mapping[str, tuple[bytes, ...]]
Header = tuple[str, str]


def is_messages(path: str) -> bool:
    """Whether a path is Anthropic's."""
    return f"{path}/".startswith(MESSAGES + "/")


def with_key(path: str, headers: Sequence[Header]) -> tuple[Header, ...]:
    """The headers, with the key where keys are looked for: some of Anthropic's clients send it in a
    header of its own. Two that differ stay two, which is refused."""
    if not is_messages(path):
        return tuple(headers)
    given = [header for header in headers if header[0] in (_THEIR_HEADER, HEADER) and header[1]]
    told = dict.fromkeys(_bearer(*header) for header in given)
    others = [header for header in headers if header[0] not in (_THEIR_HEADER, HEADER)]
    return (*others, *((HEADER, value) for value in told))


def _bearer(name: str, value: str) -> str:
    """A key as it stands in the other header, in one form."""
    if name == _THEIR_HEADER:
        return f"Bearer {value}"
    scheme, _, key = value.partition(" ")
    return f"Bearer {key.strip()}" if scheme.lower() == "bearer" else value


class HttpContext(OtherContext):
    """An HTTP request in place of a gRPC context, as far as the servicer uses one."""

    def __init__(self, scope: Scope) -> None:
        self._client: tuple[str, int] | None = scope.get("client")
        self._transport = scope["connection"].transport
        self._metadata = with_key(
            scope["path"],
            [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]],
        )
        self.headers = dict(self._metadata)
        self._request_line = {name: str(scope[name]) for name in ("method", "path", "scheme")}
        self.status = 0  # once an answer was begun
        self.request_id = ""  # once the call was accepted

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """The headers, names in small letters."""
        return self._metadata

    def peer(self) -> str:
        """The client's address in gRPC's words."""
        if self._client is None:
            return "unknown:0"
        host, port = self._client
        return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def auth_context(self) -> Certificate:
        """The client's certificate in gRPC's words; empty where there is none."""
        secured = self._transport.get_extra_info("ssl_object")
        raw = None if secured is None else secured.getpeercert(binary_form=True)
        if not raw:
            return {}
        told = secured.getpeercert() or {}
        names = [value for part in told.get("subject", ()) for kind, value in part if kind == _CN]
        alternatives = [str(value) for _, value in told.get("subjectAltName", ())]
        return {
            "x509_pem_cert": (ssl.DER_cert_to_PEM_cert(raw).encode(),),
            "x509_common_name": tuple(name.encode() for name in names),
            "x509_subject_alternative_name": tuple(name.encode() for name in alternatives),
        }

    def time_remaining(self) -> float | None:
        """HTTP has no deadlines: a client that has waited enough leaves."""
        return None

    def span(self, code: grpc.StatusCode) -> tuple[str, Mapping[str, str | int]]:
        """Named as OpenTelemetry names an HTTP server's. If the answer has not begun, with the
        status to come."""
        method, path = self._request_line["method"], self._request_line["path"]
        status = self.status or (200 if code is grpc.StatusCode.OK else status_of(code.name, ""))
        told: dict[str, str | int] = {
            "http.request.method": method,
            "http.route": path,
            "http.response.status_code": status,
            "url.path": path,
            "url.scheme": self._request_line["scheme"],
            "network.protocol.name": "http",
        }
        return f"{method} {path}", told

    async def send_initial_metadata(self, metadata: Any) -> None:
        """The call was accepted."""
        self.request_id = dict(metadata).get("quire-request-id", "")

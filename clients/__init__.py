"""Clients of Quire: `Client`, `AsyncClient`, the command line and the load test.

Imports the stubs, never the engine: runs wherever grpcio does, without torch. The names below are
imported when they are first asked for, so that the command line can set gRPC's log level before
gRPC is loaded.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire.clients.async_client import AsyncClient, AsyncGeneration
    from quire.clients.client import Client, Generation
    from quire.clients.connection import TLS
    from quire.clients.errors import (
        Broken,
        CallError,
        Cancelled,
        ClientError,
        DeadlineExceeded,
        InvalidRequest,
        NoReplica,
        OptionError,
        Overloaded,
        Unauthenticated,
        Unavailable,
    )
    from quire.clients.events import (
        Completion,
        Delta,
        Event,
        Finished,
        FinishReason,
        PromptLogprobs,
        Resumed,
        Started,
        TokenLogprob,
        ToolCallDelta,
        TopLogprob,
    )
    from quire.clients.messages import Message, Tool, ToolCall
    from quire.clients.replicas.policy import ReplicaPolicy
    from quire.clients.retry import NO_RETRY, RetryPolicy

__all__ = [
    "NO_RETRY",
    "TLS",
    "AsyncClient",
    "AsyncGeneration",
    "Broken",
    "CallError",
    "Cancelled",
    "Client",
    "ClientError",
    "Completion",
    "DeadlineExceeded",
    "Delta",
    "Event",
    "FinishReason",
    "Finished",
    "Generation",
    "InvalidRequest",
    "Message",
    "NoReplica",
    "OptionError",
    "Overloaded",
    "PromptLogprobs",
    "ReplicaPolicy",
    "Resumed",
    "RetryPolicy",
    "Started",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "TopLogprob",
    "Unauthenticated",
    "Unavailable",
]

_MODULES = {
    "async_client": (
        "AsyncClient",
        "AsyncGeneration",
    ),
    "client": (
        "Client",
        "Generation",
    ),
    "connection": ("TLS",),
    "errors": (
        "Broken",
        "CallError",
        "Cancelled",
        "ClientError",
        "DeadlineExceeded",
        "InvalidRequest",
        "NoReplica",
        "OptionError",
        "Overloaded",
        "Unauthenticated",
        "Unavailable",
    ),
    "events": (
        "Completion",
        "Delta",
        "Event",
        "Finished",
        "FinishReason",
        "PromptLogprobs",
        "Resumed",
        "Started",
        "TokenLogprob",
        "ToolCallDelta",
        "TopLogprob",
    ),
    "messages": (
        "Message",
        "Tool",
        "ToolCall",
    ),
    "replicas.policy": ("ReplicaPolicy",),
    "retry": (
        "NO_RETRY",
        "RetryPolicy",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)

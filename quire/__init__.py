"""Quire from Python: `from quire import Client`.

What `quire.clients` offers, under the name that one thinks of first. Nothing is imported before it
is asked for: the engine and the service are loaded without the clients, and the clients without
gRPC. Imports `quire.clients` and nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire.clients import (
        NO_RETRY,
        TLS,
        AsyncClient,
        AsyncGeneration,
        Broken,
        CallError,
        Cancelled,
        Client,
        ClientError,
        Completion,
        DeadlineExceeded,
        Delta,
        Event,
        Finished,
        FinishReason,
        Generation,
        InvalidRequest,
        Message,
        NoReplica,
        OptionError,
        Overloaded,
        PromptLogprobs,
        ReplicaPolicy,
        Resumed,
        RetryPolicy,
        Started,
        TokenLogprob,
        Tool,
        ToolCall,
        ToolCallDelta,
        TopLogprob,
        Unauthenticated,
        Unavailable,
    )

    __version__: str

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
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("quire")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("quire.clients"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

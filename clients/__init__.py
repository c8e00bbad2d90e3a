"""Clients of Quire: `Client`, `AsyncClient`, the command line and the load test.

Imports the stubs, never the engine: runs wherever grpcio does, without torch.
"""

from quire.clients.async_client import AsyncClient, AsyncGeneration
from quire.clients.client import Client, Generation
from quire.clients.connection import TLS
from quire.clients.errors import (
    CallError,
    Cancelled,
    ClientError,
    DeadlineExceeded,
    InvalidRequest,
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
    Started,
    TokenLogprob,
    TopLogprob,
)
from quire.clients.prompts import Message, Tool
from quire.clients.retry import NO_RETRY, RetryPolicy

__all__ = [
    "NO_RETRY",
    "TLS",
    "AsyncClient",
    "AsyncGeneration",
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
    "OptionError",
    "Overloaded",
    "RetryPolicy",
    "Started",
    "TokenLogprob",
    "Tool",
    "TopLogprob",
    "Unauthenticated",
    "Unavailable",
]

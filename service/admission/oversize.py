"""Whether a request could not be read because it is larger than gRPC takes in.

gRPC ends such a call by itself, with RESOURCE_EXHAUSTED, at the first bytes of the message. Here it
looks like a caller who has hung up: the reading ends without a message, and the call is cancelled.
What tells the two apart gRPC says to its own log alone, at its lowest level: that it "failed to
receive". That is listened for where a request is read, and goes no further. A larger bound of
gRPC's, and ours within it, would tell as much; but what gRPC may take in whole has taken its memory
before anybody has looked at it.

Invariant: records of gRPC that were not asked for stay unwritten. Should its words change, such a
call is taken for one whose caller has gone.
"""

import logging
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import Any

_GRPC = "grpc._cython.cygrpc"  # its logger
_FAILED = "Failed to receive any message"


class Receipt:
    """One request that is read."""

    def __init__(self) -> None:
        self.failed = False  # gRPC has refused it

    async def read(self, message: "Awaitable[Any]") -> Any:
        """Receive it. What gRPC logs meanwhile, in this task, is of this request."""
        heard = _receipt.set(self)
        try:
            return await message
        finally:
            _receipt.reset(heard)


_receipt: ContextVar[Receipt | None] = ContextVar("receipt", default=None)


class _Heard:
    """gRPC's messages at its lowest log level, several per call: so no record is made of them
    unless the logger would have made one anyway."""

    def __init__(self, logger: logging.Logger) -> None:
        self._debug = logger.debug

    def __call__(self, message: object, *values: object, **more: Any) -> None:
        receipt = _receipt.get()
        if receipt is not None and str(message).startswith(_FAILED):
            receipt.failed = True
        self._debug(message, *values, **more)


def listen() -> None:
    """Hear of such requests from now on, in this process; once is enough."""
    logger = logging.getLogger(_GRPC)
    if not isinstance(logger.debug, _Heard):
        logger.debug = _Heard(logger)  # type: ignore[assignment,method-assign]

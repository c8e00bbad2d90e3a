"""What Ray raises of a replica that is gone, as the clients' own loop wants it. Runs where the
package ray is installed, which is not started."""

import asyncio
from collections.abc import Callable
from importlib.util import find_spec

import grpc
import pytest

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


class Responses:
    """In place of Ray's, of which nothing comes but an error."""

    def __init__(self, error: BaseException) -> None:
        self._error = error
        self.cancelled = False

    async def __anext__(self) -> bytes:
        raise self._error

    def cancel(self) -> None:
        self.cancelled = True


def lost() -> dict[str, Callable[[], BaseException]]:
    from ray.exceptions import ActorDiedError
    from ray.serve.exceptions import BackPressureError

    empty = grpc.aio.Metadata()
    return {
        "died": ActorDiedError,
        "no room": lambda: BackPressureError(num_queued_requests=1, max_queued_requests=1),
        "its connection": lambda: grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, empty, empty),
        "stopped": asyncio.CancelledError,
    }


@pytest.mark.parametrize("how", ["died", "no room", "its connection", "stopped"])
def test_a_replica_that_is_gone_is_unavailable_whatever_ray_calls_it(how: str) -> None:
    from quire.service.ray.streams import LOST, _Call

    async def test() -> None:
        responses = Responses(lost()[how]())
        call = _Call(responses)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNAVAILABLE, LOST)
        call.cancel()
        assert not responses.cancelled, "there is nothing left to cancel"

    asyncio.run(test())


def test_a_caller_that_leaves_is_no_lost_replica() -> None:
    from quire.service.ray.streams import _Call

    class Silent(Responses):
        async def __anext__(self) -> bytes:
            await asyncio.Event().wait()
            raise AssertionError

    async def test() -> None:
        responses = Silent(asyncio.CancelledError())
        call = _Call(responses)
        reading = asyncio.ensure_future(call.read())
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        call.cancel()
        assert responses.cancelled

    asyncio.run(test())

"""The storm of `make chaos`, in short: 800 calls in waves, by clients of which one in four is
killed, over a device that fails."""

import asyncio

from support.patience import PATIENCE
from support.storm import storm
from support.storm_client import KINDS


def test_a_storm_leaves_the_books_in_order_and_nothing_behind() -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * PATIENCE):
            report = await storm(calls=800, wave=200, seed=11)
        assert not report.wrong, "\n".join(report.wrong[:20])
        assert report.calls == 800
        assert report.killed == 4
        assert report.kinds.keys() == KINDS.keys()
        assert {"OK", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL"} <= report.codes.keys()
        requests = report.stats.requests
        assert min(requests.finished_stop, requests.finished_length) > 100
        assert min(requests.finished_cancelled, requests.finished_error) > 20

    asyncio.run(bounded())

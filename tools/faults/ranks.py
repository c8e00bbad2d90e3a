"""Faults of what ranks share out, exchange and are told."""

from faults.fault import Fault

SHARDS = ("tests/engine/model/test_shards.py",)

FAULTS = (
    Fault(
        "ranks: a rank reads whole rows of a matrix of which it takes some columns",
        "engine/weights/loader.py",
        "            yield row * stored.row_bytes + skipped, self.row_bytes\n",
        "            yield row * stored.row_bytes, self.row_bytes\n",
        SHARDS,
    ),
    Fault(
        "ranks: partial sums are rounded one by one",
        "engine/model/layers/parallel.py",
        "        total = first.float()\n",
        "        total = first\n",
        SHARDS,
    ),
    Fault(
        "ranks: partial sums are taken from the last rank to the first",
        "engine/model/layers/parallel.py",
        "first, *others = self._gather(partial).unbind(0)",
        "first, *others = reversed(self._gather(partial).unbind(0))",
        SHARDS,
    ),
)

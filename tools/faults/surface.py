"""Faults of the calls with one answer, of the metrics' second names, and of files of requests."""

from faults.fault import Fault

PLACES = ("tests/engine/client/test_places.py",)
POOL = ("tests/engine/scheduling/test_block_pool.py",)
TEXT_CALLS = ("tests/service/rpc/test_text_calls.py",)
SINGLE = ("tests/service/rpc/test_single_answers.py",)
METRICS = ("tests/service/telemetry/test_metrics.py",)
FILES = ("tests/clients/batch/test_batch_files.py",)
RUN = "tests/clients/batch/test_batch_run.py::test_"

FAULTS = (
    Fault(
        "surface: a flush forgets what requests hold",
        "engine/scheduling/block_pool.py",
        "[block for block in self._free if block in self.prefix_cache]",
        "list(self.prefix_cache.blocks())",
        POOL,
    ),
    Fault(
        "surface: a flush whose caller has gone is answered to the next",
        "engine/client/async_engine.py",
        "                asked = self._asked.popleft()\n"
        "                if not asked.done():  # otherwise its caller has gone\n",
        "                asked = self._asked.popleft()\n"
        "                while asked.done() and self._asked:\n"
        "                    asked = self._asked.popleft()\n"
        "                if not asked.done():\n",
        PLACES,
    ),
    Fault(
        "surface: anybody may flush the cache",
        "service/rpc/stats.py",
        '        _operators_only("FlushCache", operator=operator)\n',
        "",
        SINGLE,
    ),
    Fault(
        "surface: text is read on the event loop",
        "service/rpc/text_calls.py",
        "            return await validator.workers.run(read, caller.client, prompt.ByteSize())\n",
        "            return read(lambda: True)\n",
        TEXT_CALLS,
    ),
    Fault(
        "surface: text calls are not counted among a client's",
        "service/rpc/text_calls.py",
        "        permit = self._limits.enter(caller.client)\n",
        '        permit = self._limits.enter(f"text {caller.client}")\n',
        TEXT_CALLS,
    ),
    Fault(
        "surface: a drain does not wait for a prompt that is read",
        "service/rpc/answers.py",
        "        with self._open_calls.one():\n            return await self._text.tokenize(",
        "        if serving:\n            return await self._text.tokenize(",
        TEXT_CALLS,
    ),
    Fault(
        "surface: schedulers find our names",
        "service/telemetry/metrics.py",
        "        return self._family(THEIRS + self.known_as,",
        "        return self._family(THEIRS + self.name,",
        METRICS,
    ),
    Fault(
        "surface: half a result is kept",
        "clients/batch/results.py",
        "            self._file.truncate(whole)\n",
        "",
        FILES,
    ),
    Fault(
        "surface: a file without a line of ours is cut off",
        "clients/batch/results.py",
        "                    if not _is_begun(raw):\n",
        "                    if not raw:\n",
        FILES,
    ),
    Fault(
        "surface: a server that is away is a result",
        "clients/batch/run.py",
        "            except _PASSING as error:\n",
        "            except () as error:\n",
        (f"{RUN}what_is_no_fault_of_a_line_gives_it_no_result",),
    ),
    Fault(
        "surface: a killed command leaves its server behind",
        "clients/batch/own_server.py",
        '    if sys.platform != "linux":\n',
        "    if sys.platform:\n",
        (f"{RUN}its_own_server_ends_with_it_however_it_ends",),
    ),
)

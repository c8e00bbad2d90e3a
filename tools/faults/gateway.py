"""Faults of the gateway's API: whose calls an abort reaches, and what a subscriber is told."""

from faults.fault import Fault

_CALLS = "service/gateway/open_calls.py"
_STREAM = "service/gateway/kv_stream.py"
_TELLING = "service/gateway/event_mapping.py"
_SERVICER = "service/gateway/servicer.py"
_ASKING = "service/gateway/request_mapping.py"


def _face(name: str) -> tuple[str, ...]:
    return (f"tests/service/gateway/test_gateway_frontend.py::test_{name}",)


_SNAPSHOT = _face("a_subscriber_gets_a_snapshot_and_then_what_changes")

FAULTS = (
    Fault(
        "gateway: an abort reaches another client's call",
        _CALLS,
        "            for call in tuple(self._calls.get((client, request_id), ())):\n",
        "            named = [c for (_, i), c in self._calls.items() if i == request_id]\n"
        "            for call in (one for calls in named for one in calls):\n",
        _face("an_abort_reaches_calls_of_the_same_client_alone"),
    ),
    Fault(
        "gateway: an aborted call ends without a word",
        _SERVICER,
        "        for message in telling.aborted() if call.aborted else ():\n",
        "        for message in ():\n",
        _face("an_abort_ends_the_call_with_what_it_has_and_frees_all"),
    ),
    Fault(
        "gateway: a snapshot's chunks number beyond the state's",
        _STREAM,
        "batch.sequence - count + 1 + index",
        "batch.sequence + index",
        _SNAPSHOT,
    ),
    Fault(
        "gateway: a chain goes on over what does not follow it",
        _STREAM,
        "return event.parent == before.block_hash and event.salt == before.salt",
        "return True",
        _face("another_client_s_salt_is_told_with_its_blocks"),
    ),
    Fault(
        "gateway: other clients' blocks look like the subscriber's own",
        _STREAM,
        "        if first.salt != self._salt:\n",
        "        if False:\n",
        _face("another_client_s_salt_is_told_with_its_blocks"),
    ),
    Fault(
        "gateway: anybody may watch the cached blocks",
        _SERVICER,
        "allow_watch(operator=caller.operator)",
        "allow_watch(operator=True)",
        _face("an_abort_reaches_calls_of_the_same_client_alone"),
    ),
    Fault(
        "gateway: an end holds the last chunk's ids alone",
        _TELLING,
        "        said.ids += delta.token_ids\n",
        "        said.ids = list(delta.token_ids)\n",
        ("tests/service/gateway/test_event_mapping.py::test_an_end_holds_all_that_chunks_held",),
    ),
    Fault(
        "gateway: media are ignored",
        _ASKING,
        '    "media_refs": _MEDIA,\n',
        "",
        (
            "tests/service/gateway/test_request_mapping.py::"
            "test_media_transfer_and_ranks_are_refused_by_name",
        ),
    ),
)

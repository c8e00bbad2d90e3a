"""Which replica a prompt goes to, within Ray's own router: the clients' affinity.

Invariant: as in `clients/replicas/fleet.py`: a conversation goes where its beginning went, else
where rendezvous hashing puts it, and never to a replica that is much fuller than the mean. Every
other replica follows, in the hash's order, for where the first takes no calls. Calls without a
prompt go to the least busy, in turn.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from ray.serve.request_router import RequestRouter

from quire.clients.replicas.affinity import Memory, PromptKeys
from quire.service.ray.ranking import ranked


class PrefixRouter(RequestRouter):  # type: ignore[misc]
    """The router of one deployment, in each process that calls it."""

    def initialize_state(self, **_options: Any) -> None:
        """Ray calls it once."""
        self._memory = Memory()
        self._open: Counter[str] = Counter()
        self._at: dict[str, str] = {}  # calls by Ray's own id
        self._turn = 0  # of calls without a prompt

    async def choose_replicas(
        self, candidate_replicas: list[Any], pending_request: Any = None
    ) -> list[list[Any]]:
        """Ranks of one replica each, the best first."""
        by_name = {one.replica_id.unique_id: one for one in candidate_replicas}
        keys = None if pending_request is None else keys_in(pending_request)
        self._turn += 1
        names = ranked(self._in_turn(by_name), self._open, self._memory, keys)
        return [[by_name[name]] for name in names]

    def _in_turn(self, names: Iterable[str]) -> list[str]:
        listed = sorted(names)
        first = self._turn % max(len(listed), 1)
        return listed[first:] + listed[:first]

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        """It has gone there."""
        del result
        name, keys = replica_id.unique_id, keys_in(pending_request)
        if keys is not None:
            self._memory.note(keys, name)
        self._open[name] += 1
        self._at[pending_request.metadata.internal_request_id] = name

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        """It has ended, however that was."""
        del replica_id
        name = self._at.pop(internal_request_id, None)
        if name is not None:
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]


def keys_in(pending_request: Any) -> PromptKeys | None:
    """The prompt's keys of a generating call; None for any other call."""
    given = pending_request.kwargs.get("keys")
    return None if given is None else PromptKeys(given[0], tuple(given[1]))

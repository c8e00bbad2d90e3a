"""How a client uses several replicas: routing, resuming, and the retry budget."""

from dataclasses import dataclass

from quire.clients.arguments import MAX_SECONDS, flag, integer, kind, number, show
from quire.clients.errors import OptionError

PREFIX, ROUND_ROBIN = "prefix", "round_robin"
MAX_RESUMES = 2
"""A request that kills whatever serves it kills one replica more than this, and no others."""


@dataclass(frozen=True, slots=True)
class ReplicaPolicy:
    """Values are checked; OptionError names the one that cannot be right."""

    routing: str = PREFIX
    """`prefix`: a conversation goes to the replica that has its blocks. `round_robin`: in turn."""
    resumes: int = MAX_RESUMES
    """How often a broken stream may go on elsewhere, 0 to 2. 0: it ends with its error."""
    tell_resumed: bool = False
    """Whether a stream that goes on says so, by a Resumed event."""
    exact: bool = False
    """Go on only where `numerics` are equal too: the same class of card and the same libraries."""
    budget: int = 1000
    """Credit for asking again, of the whole client: how much can be saved up. It begins full. Each
    time that a call is asked again costs 1, except where nobody could be reached."""
    budget_per_call: float = 0.5
    """Credit that each call brings."""
    budget_per_second: float = 10.0
    """Credit that comes with time."""
    lookup_seconds: float = 30.0
    """Names are looked up again this often, and at once (a second apart) when a replica is lost."""

    def __post_init__(self) -> None:
        if self.routing not in (PREFIX, ROUND_ROBIN):
            raise OptionError(
                f"replicas.routing: {show(self.routing)}; must be {PREFIX} or {ROUND_ROBIN}"
            )
        integer("replicas.resumes", self.resumes, 0, MAX_RESUMES)
        flag("replicas.tell_resumed", self.tell_resumed)
        flag("replicas.exact", self.exact)
        integer("replicas.budget", self.budget, 0, 1_000_000_000)
        for name in ("budget_per_call", "budget_per_second", "lookup_seconds"):
            value = number(f"replicas.{name}", getattr(self, name))
            if not 0 <= value <= MAX_SECONDS:
                raise OptionError(
                    f"replicas.{name}: {value:g}; at least 0, at most {MAX_SECONDS:g}"
                )


def as_replica_policy(value: ReplicaPolicy | None) -> ReplicaPolicy:
    """The policy given, or the usual one."""
    if value is not None and not isinstance(value, ReplicaPolicy):
        raise OptionError(f"replicas: a ReplicaPolicy or None, not {kind(value)}")
    return value or ReplicaPolicy()

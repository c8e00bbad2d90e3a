"""Where the server stands in its life.

LOADING → READY → DRAINING → (gone); from LOADING, READY and DRAINING also → DEAD.

Invariant: only READY lets calls in; the state never goes back.
"""

import enum

from quire.service.errors import Refusal, shutting_down, unavailable


class Phase(enum.Enum):
    """A stage of the server's life."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


_ORDER = list(Phase)


class Lifecycle:
    """The phase, and the refusal that goes with it."""

    def __init__(self) -> None:
        self.phase = Phase.LOADING
        self.error_id = ""

    def advance(self, phase: Phase) -> None:
        """Go on to a later phase; an earlier one is nothing."""
        if _ORDER.index(phase) > _ORDER.index(self.phase):
            self.phase = phase

    def refusal(self) -> Refusal | None:
        """Why no call is let in now; None: it is."""
        if self.phase is Phase.READY:
            return None
        if self.phase is Phase.LOADING:
            return unavailable("the server is loading its model", "LOADING")
        if self.phase is Phase.DRAINING:
            return shutting_down()
        return self.dead()

    def check(self) -> None:
        """Raises that refusal."""
        refusal = self.refusal()
        if refusal is not None:
            raise refusal

    def engine_gone(self, words: str) -> Refusal:
        """The refusal for a call whose engine has ended: stopped by us in the drain's last stage,
        or by a fault."""
        if self.phase is Phase.DRAINING:
            return shutting_down()
        return unavailable(words, "ENGINE_DEAD")

    def dead(self) -> Refusal:
        """The refusal for a call once the engine is dead."""
        return unavailable(f"the engine has stopped ({self.error_id})", "ENGINE_DEAD")

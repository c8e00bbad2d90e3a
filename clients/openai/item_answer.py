"""An answer of items, gathered event by event."""

from collections.abc import Iterator

from quire.clients.openai.response_items import Items, Step
from quire.clients.openai.shapes import FINISH, Tally
from quire.v1 import inference_pb2 as pb


class ItemAnswer:
    """Gathers one body's events."""

    def __init__(self, model: str, *, keeps_logprobs: bool) -> None:
        """keeps_logprobs: in the items, and not in the steps alone."""
        self.model = model
        self.items = Items(keeps_logprobs=keeps_logprobs)
        self.tally = Tally()
        self.finished: pb.Finished | None = None

    def take(self, message: pb.GenerateResponse) -> None:
        """The next event."""
        for _ in self.steps(message):
            pass

    def steps(self, message: pb.GenerateResponse) -> Iterator[Step]:
        """The next event: what it does to the items, done as it is asked for. Where a status is the
        end, its last item was cut off: nothing more is told of that."""
        event = message.WhichOneof("event")
        if event == "started":
            self.items.name = message.started.request_id
            self.tally.started(message.started)
        elif event == "delta":
            yield from self.items.take(message.delta)
        elif event == "finished" and message.finished.reason in FINISH:
            self.tally.finished(message.finished)
            self.finished = message.finished
            yield from self.items.end(self.ending)

    @property
    def ending(self) -> str:
        """How it has ended, or that it has not."""
        if self.finished is None:
            return "in_progress"
        short = self.finished.reason == pb.FINISH_REASON_LENGTH
        return "incomplete" if short else "completed"

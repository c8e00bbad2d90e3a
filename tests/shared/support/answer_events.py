"""Events of one answer, and what an API with named events makes of them."""

import json
import random
from typing import Any

from quire.v1 import inference_pb2 as pb

STARTED = pb.Started(request_id="r", prompt_tokens=7, cached_tokens=4)
USAGE = pb.Usage(prompt_tokens=7, completion_tokens=9, reasoning_tokens=3)
THOUGHT, SAID, ARGUMENTS = "I add.", "Let me see: 1 + 1.", '{"a": 1, "b": 1}'
STOP, LENGTH = pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH
Event = dict[str, Any]


def messages(deltas: list[pb.Delta], reason: Any = STOP) -> list[pb.GenerateResponse]:
    finished = pb.Finished(reason=reason, usage=USAGE)
    return [
        pb.GenerateResponse(started=STARTED),
        *(pb.GenerateResponse(delta=delta) for delta in deltas),
        pb.GenerateResponse(finished=finished),
    ]


def calls(*pieces: pb.ToolCallDelta) -> pb.Delta:
    return pb.Delta(tool_calls=pieces)


def cut(draw: random.Random, text: str) -> list[str]:
    """The text in pieces."""
    places = sorted(draw.sample(range(1, len(text)), draw.randrange(4)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def an_answer(draw: random.Random) -> list[pb.Delta]:
    """A thought, a text and two calls, cut anywhere."""
    deltas = [pb.Delta(reasoning=piece) for piece in cut(draw, THOUGHT)]
    deltas += [pb.Delta(text=piece) for piece in cut(draw, SAID)]
    for i in (0, 1):
        head, *rest = cut(draw, ARGUMENTS)
        deltas.append(calls(pb.ToolCallDelta(index=i, id=f"c{i}", name="add", arguments_json=head)))
        deltas += [calls(pb.ToolCallDelta(index=i, arguments_json=piece)) for piece in rest]
    return deltas


def parsed(data: bytes) -> list[Event]:
    """The events; each stands under its own name."""
    events = []
    for block in data.decode("ascii").split("\n\n")[:-1]:
        name, value = block.split("\n")
        events.append(json.loads(value.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events

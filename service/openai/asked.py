"""What one HTTP request asks for, once its body was read."""

from dataclasses import dataclass, field

from quire.service.openai.fields import Fields
from quire.service.openai.names import Names
from quire.service.rpc.reception import Malformed
from quire.v1 import inference_pb2 as pb


@dataclass(frozen=True, slots=True)
class Asked:
    """request: Malformed where the body does not say one. include_usage: in a last chunk.
    logprobs: the client wants them written."""

    request: pb.GenerateRequest | Malformed
    names: Names = field(default_factory=Names)
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False


def read_streaming(body: Fields) -> tuple[bool, bool]:
    """Whether to stream, and whether the tokens counted are to follow."""
    stream = body.flag("stream") or False
    options = body.nested("stream_options")
    if options is None:
        return stream, False
    if not stream:
        body.fault("stream_options", {}, "goes with stream = true alone")
    include_usage = options.flag("include_usage") or False
    options.passed_over("include_obfuscation")
    options.end()
    return stream, include_usage

"""Fields of the contract that the core does not honour yet, so that none is accepted and ignored.

Each entry goes when the core honours its field; with the last one goes the file, and its one call.
"""

from quire.service.errors import Violation, invalid
from quire.service.openai.names import Names
from quire.v1 import inference_pb2 as pb

NOT_YET = ("constraint",)


def check(request: pb.GenerateRequest, names: Names) -> None:
    """Raises Refusal."""
    found = [path for path in NOT_YET if _given(request, path)]
    if found:
        raise invalid([Violation(names.http(path), "is not supported yet") for path in found])


def _given(request: pb.GenerateRequest, path: str) -> bool:
    message: object = request
    *parents, name = path.split(".")
    for parent in parents:
        if not message.HasField(parent):  # type: ignore[attr-defined]
            return False
        message = getattr(message, parent)
    return any(field.name == name for field, _ in message.ListFields())  # type: ignore[attr-defined]

"""Everything the engine raises on purpose.

QuireError
├── ConfigError        an option or a model's configuration that cannot be used: names it
├── ModelError         a model that cannot be loaded: names the file or weight
├── CapacityError      memory does not suffice: carries the numbers, and the option to turn
├── CompileError       not all kernels could be compiled
├── RequestError       a request that can never run: names the field, the value and the limit
├── CorruptStateError  the engine's books can not be trusted any more: the engine ends
├── RankError          a rank that shares the model is lost, or says what nobody can follow
├── NotANumberError    logits that are NaN or infinite: the request that they belong to ends
├── ConstraintError    a constraint nothing satisfies, or whose limits are reached: its row ends
├── StepError          a step failed; every request in flight ends with it; its id is in the log
└── EngineDeadError    the engine is gone; nothing will be answered; its id is in the log
"""


class QuireError(Exception):
    """Base of all errors that Quire raises on purpose. Its text is one line, fit for a person."""


class ConfigError(QuireError):
    """An option or configuration value that cannot be used."""


class ModelError(QuireError):
    """A model that cannot be loaded."""


class CapacityError(QuireError):
    """Not enough memory for what was asked."""


class CompileError(QuireError):
    """Not all kernels could be compiled."""


class RequestError(QuireError):
    """A request that can never run, refused before any state exists."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class TooLongError(RequestError):
    """A prompt that leaves less room than is asked for, or none at all."""


class CorruptStateError(QuireError):
    """A fault half-way through a change of state; nothing planned from here on could be trusted."""


class RankError(QuireError):
    """A rank that shares the model does not go on, or not with the others."""


class NotANumberError(QuireError):
    """Logits that are NaN or infinite: no token can be chosen by them."""


class ConstraintError(QuireError):
    """An output cannot go on under its constraint."""


class StepError(QuireError):
    """A step failed. `error_id` stands beside the trace in the log."""

    def __init__(self, error_id: str, cause: str) -> None:
        super().__init__(f"a step failed ({error_id}): {cause}")
        self.error_id = error_id


class EngineDeadError(QuireError):
    """The engine has ended. `error_id` stands beside the trace in the log."""

    def __init__(self, error_id: str) -> None:
        super().__init__(f"the engine has stopped ({error_id})")
        self.error_id = error_id

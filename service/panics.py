"""What a library in Rust raises when it panics, which is no Exception.

Invariant: whoever has a call wait for such a library's work hands on an Exception, whatever ended
the work: nothing that serves calls ends one for anything else, and its client would wait for ever.
"""


def as_exception(error: BaseException) -> Exception:
    """The error, or what stands for one that no future can hold, or nobody looks for. It does not
    hold that one's frames."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(repr(error))

"""The faults that `make mutants` puts back: a module a subject, each with its `FAULTS`.

Each names the file, the text that is right, what it becomes, and the tests that should notice. The
first part of a name says where users reported the fault; `quire` are faults of its own making.
"""

import importlib
import pkgutil

from faults.fault import Fault

__all__ = ["FAULTS", "Fault"]

FAULTS: tuple[Fault, ...] = tuple(
    fault
    for module in sorted(found.name for found in pkgutil.iter_modules(__path__))
    if module != "fault"
    for fault in importlib.import_module(f"{__name__}.{module}").FAULTS
)

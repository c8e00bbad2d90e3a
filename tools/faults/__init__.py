"""The faults that `make mutants` puts back: a module a room or wing, each with its `FAULTS`."""

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

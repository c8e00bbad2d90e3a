"""What the parts of `TritonOps` take as given of the whole."""

from abc import ABC, abstractmethod


class TritonPart(ABC):
    """pdl: kernels are launched as programmatic dependents of one another."""

    pdl: bool

    @property
    @abstractmethod
    def exact(self) -> bool:
        """Whether a row's bits are its own."""

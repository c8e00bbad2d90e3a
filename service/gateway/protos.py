"""The messages of the foreign contract, from a package that may not be there."""

from importlib import import_module
from typing import Any

from quire.engine.errors import ConfigError

SERVICE = "vllm.grpc.engine.VllmEngine"


class Protos:
    """The foreign contract's two generated modules."""

    def __init__(self) -> None:
        """Raises ConfigError."""
        try:
            self.engine: Any = import_module("smg_grpc_proto.generated.vllm_engine_pb2")
            # The generated module names it without its package.
            self.common: Any = import_module("smg_grpc_proto.generated.common_pb2")
        except ImportError as error:
            raise ConfigError(
                "gateway_port: needs the package smg-grpc-proto; in a checkout: pip install"
                f" '.[gateway]' ({error})"
            ) from error

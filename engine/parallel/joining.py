"""How a node joins node 0: it connects, and both sides prove that they have the secret.

Invariant: the connection that is returned leads to someone who has the secret and accepts this
node. Anybody else who listens there learns only a proof that is valid nowhere else.
"""

import socket
import time
from collections.abc import Callable

from quire.engine.errors import ConfigError, RankError
from quire.engine.parallel import handshake
from quire.engine.parallel.frame_channel import FrameChannel, Kind, values_of
from quire.engine.parallel.handshake import Opening
from quire.engine.parallel.network import kept_alive
from quire.engine.parallel.secret import Secret

ANSWER_SECONDS = 10.0  # that the other side may take for each answer
_BETWEEN_SECONDS = 0.2  # two attempts


class Joining:
    """Comes to node 0 as often as there are connections to make, within one time limit."""

    def __init__(
        self,
        address: str,
        port: int,
        secret: Secret,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """seconds: in which node 0 must be found, counted from here."""
        self._place = (address, port)
        self._where = f"master_addr = {address}, master_port = {port}"
        self._secret = secret
        self._seconds = seconds
        self._clock, self._pause = clock, pause
        self._until = clock() + seconds

    def connect(self, said: Opening) -> socket.socket:
        """Node 0's connection for this, as many attempts as it takes. Raises ConfigError."""
        while True:
            try:
                return self._attempt(said)
            except OSError as error:
                reason = error.strerror or str(error) or type(error).__name__
            if self._clock() >= self._until:
                raise ConfigError(
                    f"{self._where}: node 0 was not reached within {self._seconds:g} s ({reason})"
                )
            self._pause(min(_BETWEEN_SECONDS, max(self._until - self._clock(), 0)))

    def _attempt(self, said: Opening) -> socket.socket:
        """Raises OSError where another attempt may succeed, and ConfigError where none will."""
        left = min(max(self._until - self._clock(), _BETWEEN_SECONDS), ANSWER_SECONDS)
        connection = socket.create_connection(self._place, timeout=left)
        try:
            kept_alive(connection)
            self._introduce(connection, said)
            connection.settimeout(None)
        except BaseException:
            connection.close()
            raise
        return connection

    def _introduce(self, connection: socket.socket, said: Opening) -> None:
        greeting = _exactly(connection, handshake.HELLO_BYTES)
        if not handshake.is_hello(greeting):
            raise ConfigError(f"{self._where}: what listens there is no node 0 of Quire's")
        head = handshake.unsigned(said)
        data = handshake.signed(self._secret, greeting, head, said.node_config)
        connection.sendall(data)
        answer = _exactly(connection, handshake.ANSWER_BYTES)
        if not handshake.is_accepted(answer):
            raise ConfigError(f"{self._where}: node 0 has another secret")
        if not handshake.is_node_0(self._secret, answer, greeting, data):
            raise ConfigError(f"{self._where}: whoever listens there does not have the secret")
        try:
            kind, body = FrameChannel(connection).receive()
        except RankError as error:
            raise ConnectionError(str(error)) from error
        if kind is Kind.REFUSED:
            raise ConfigError(str(values_of(body)["message"]))


def _exactly(connection: socket.socket, count: int) -> bytes:
    """Receive exactly this many bytes. Raises OSError, also if the connection ends."""
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionError("the connection was closed")
        data += more
    return data

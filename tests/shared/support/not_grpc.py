"""What listens on a port and is no server of gRPC."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def not_grpc(tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """The address of a server of HTTP/1.1, until the block is left; tls: one of HTTPS."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=_serve, args=(listening, tls), daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(listening: socket.socket, tls: ssl.SSLContext | None) -> None:
    """Whoever comes has the answer before the connection's end: bytes that were left unread would
    end it at once, and what is on its way with it."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listening.accept()
            if tls is not None:
                try:
                    connection = tls.wrap_socket(connection, server_side=True)
                except OSError:
                    continue
            with connection, contextlib.suppress(ConnectionError, ssl.SSLError):
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1024):
                    pass

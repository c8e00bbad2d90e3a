"""What tests of hostile HTTP clients share."""

from support.harness import Running


def port(running: Running) -> int:
    return running.server.http_port

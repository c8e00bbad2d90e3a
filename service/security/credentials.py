"""The server's credentials, its own and its callers', as the options ask for them.

Invariant: made before any port is opened, so that what cannot be read ends the start.
"""

from dataclasses import dataclass
from pathlib import Path

import grpc

from quire.service.security import tls
from quire.service.security.auth import Authenticator
from quire.service.security.keys import KeyRing, read_keys, still_standing
from quire.service.security.reload import Refreshable, WatchedFiles
from quire.service.security.tls import TLSFiles, TLSMaterial
from quire.service.settings import ServiceConfig


@dataclass(frozen=True, slots=True)
class Security:
    """keys None: no key is asked for. tls None: plaintext."""

    keys: WatchedFiles[KeyRing] | None
    tls: WatchedFiles[TLSMaterial] | None
    mutual: bool
    max_priority: int = 0

    @property
    def authenticator(self) -> Authenticator:
        """Tells who calls."""
        return Authenticator(self.keys, certificates=self.mutual, max_priority=self.max_priority)

    @property
    def watched(self) -> list[Refreshable]:
        """Everything that is read again when it changes."""
        return [files for files in (self.keys, self.tls) if files is not None]

    def credentials(self) -> grpc.ServerCredentials | None:
        """The port's; None: plaintext."""
        return None if self.tls is None else tls.credentials(self.tls, mutual=self.mutual)


def read_security(service: ServiceConfig) -> Security:
    """Read every file that the options name. Raises ConfigError."""
    keys = material = None
    if service.api_keys is not None:
        keys = watch_keys(Path(service.api_keys))
    if service.tls_cert is not None and service.tls_key is not None:
        material = tls.watch(tls_files(service))
    mutual = service.tls_client_ca is not None
    return Security(keys, material, mutual, service.max_priority)


def watch_keys(path: Path) -> WatchedFiles[KeyRing]:
    """The file's keys, kept fresh by `refresh`. If the file is emptied while the server runs,
    nobody gets in. An empty file at the start is taken for a mistake: raises ConfigError."""
    read_keys(path)
    return WatchedFiles(
        "api_keys",
        [path],
        lambda: read_keys(path, may_be_empty=True),
        fallback=lambda before: still_standing(path, before),
        alarm=lambda ring: "" if len(ring) else "holds no key: nobody may come in",
    )


def tls_files(service: ServiceConfig) -> TLSFiles:
    """The paths of a service with TLS."""
    assert service.tls_cert is not None and service.tls_key is not None
    authorities = service.tls_client_ca
    return TLSFiles(
        Path(service.tls_cert),
        Path(service.tls_key),
        None if authorities is None else Path(authorities),
    )

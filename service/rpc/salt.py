"""The salt under which a request's cached prefixes are found."""

import hashlib


def effective_salt(tenant: str, salt: str) -> bytes:
    """H(tenant, salt), both with their lengths; empty where both are."""
    if not tenant and not salt:
        return b""
    digest = hashlib.blake2b(digest_size=16)
    for part in (tenant.encode(), salt.encode()):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()

"""Faults of keys, certificates, and who is told what."""

from faults.fault import Fault

_AT = "tests/service/security/"
REVOCATION, LINES = (f"{_AT}test_revocation.py",), (f"{_AT}test_key_lines.py",)
ENTRANCE, KINDS = (f"{_AT}test_entrance.py",), (f"{_AT}test_certificate_kinds.py",)
SCRAPING = ("tests/service/telemetry/test_scraping.py",)
RELOAD, KEYS = "service/security/reload.py", "service/security/keys.py"
CERTIFICATES, STATS = "service/security/certificates.py", "service/rpc/stats.py"

FAULTS = (
    Fault(
        "security: a change that failed is not tried again",
        RELOAD,
        "        self._seen = None  # to be tried again",
        "        self._seen = self._signature()  # to be tried again",
        REVOCATION,
    ),
    Fault(
        "security: an unexpected fault ends the watching",
        RELOAD,
        "            except Exception as error:\n                self._say(error)",
        "            except OSError as error:\n                self._say(error)",
        REVOCATION,
    ),
    Fault(
        "security: no descriptor is kept to read keys with",
        RELOAD,
        "if self._spare is not None and not _descriptors_left():",
        "if self._spare is None and not _descriptors_left():",
        REVOCATION,
    ),
    Fault(
        "security: files of two moments are taken together",
        RELOAD,
        "            if self._signature() == before:\n                return",
        "            if before:\n                return",
        REVOCATION,
    ),
    Fault(
        "security: an unreadable key file keeps all keys",
        KEYS,
        "    except (ConfigError, OSError):\n        return KeyRing(())",
        "    except (ConfigError, OSError):\n        return before",
        REVOCATION,
    ),
    Fault(
        "security: a pipe in the place of the keys is waited for",
        "engine/plain_file.py",
        "    return os.open(path, flags | os.O_NONBLOCK)\n",
        "    if stat.S_ISFIFO(os.stat(path).st_mode):\n"
        "        raise NotImplementedError('it would wait')\n"
        "    return os.open(path, flags)\n",
        REVOCATION,
    ),
    Fault(
        "security: a half-written file lets new keys in",
        KEYS,
        "for e in entries.values() if (e.name, e.salt, e.digest) in known)",
        "for e in entries.values() if known)",
        REVOCATION,
    ),
    Fault(
        "security: a look-up compares with every line",
        KEYS,
        "self._buckets.setdefault(entry.salt[:_BUCKET], [])",
        "self._buckets.setdefault(_bucket(b''), [])",
        LINES,
    ),
    Fault(
        "security: a key that nobody has is searched again and again",
        KEYS,
        "        if self._unknown.has(name):\n            return None\n",
        "",
        LINES,
    ),
    Fault(
        "security: a key ends no priority",
        "service/admission/rate_limits.py",
        "    if asked > highest:\n",
        "    if asked > highest + 1000:\n",
        ENTRANCE,
    ),
    Fault(
        "security: everybody is told everybody's counters",
        STATS,
        "if operator else self._served()",
        "if block_map is not None else self._served()",
        ENTRANCE,
    ),
    Fault(
        "security: the block map has no rate",
        STATS,
        '        _take_one("include_block_map", self._maps, self._clock())\n',
        "",
        ENTRANCE,
    ),
    Fault(
        "security: salts without their lengths",
        "service/rpc/salt.py",
        '        digest.update(len(part).to_bytes(8, "little"))\n',
        "",
        ENTRANCE,
    ),
    Fault(
        "security: a certificate's tenant is emptied",
        "service/security/auth.py",
        'return Caller(f"cert:{identity}", f"cert:{client}"',
        'return Caller("", f"cert:{client}"',
        KINDS,
    ),
    Fault(
        "security: a curve that gRPC cannot serve is taken",
        CERTIFICATES,
        "_CURVES = (ec.SECP256R1, ec.SECP384R1)",
        "_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)",
        KINDS,
    ),
    Fault(
        "security: a chain in any order is taken",
        CERTIFICATES,
        "        _check_issued(cert, certificate, issuer)\n",
        "        pass\n",
        KINDS,
    ),
    Fault(
        "security: the scrape reads a queue that changes",
        "service/telemetry/loop_snapshot.py",
        "        if self._loop is None:\n            return self._take()",
        "        if self._take is not None:\n            return self._take()",
        SCRAPING,
    ),
    Fault(
        "security: old connections to the metrics are kept",
        "service/telemetry/metrics_server.py",
        "        self.close_connections(older_than=self.life_seconds)\n",
        "        pass\n",
        SCRAPING,
    ),
)

"""How to speak TLS, and whom this system trusts. Values, and a look at a few well-known paths."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

_HASHED_CA_DIRECTORIES = ("/etc/ssl/certs",)
_CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


class TLS(NamedTuple):
    """How to speak TLS with one origin: paths of PEM files; `ca` is trusted beside the system's authorities."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    verify: bool = True

    def elsewhere(self) -> TLS:
        """The same for a host that this one sends us to: it never gets to see the client certificate."""
        return TLS(self.ca, None, None, self.verify)


DEFAULT_TLS = TLS()


class Authorities(NamedTuple):
    """Where the certificates of trusted authorities are: a bundle, a directory indexed by hash, or neither."""

    bundle: str | None
    directory: str | None


def find_authorities(environ: Mapping[str, str]) -> Authorities:
    """$SSL_CERT_FILE, $CURL_CA_BUNDLE, $SSL_CERT_DIR, else this system's own.

    pycurl's wheel brings a libcurl whose built-in path is another distribution's. A hashed directory is preferred:
    OpenSSL then reads the one certificate it needs, where parsing the bundle takes each handle 7 ms.
    """
    for variable in ("SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        if environ.get(variable):
            return Authorities(environ[variable], None)
    if environ.get("SSL_CERT_DIR"):
        return Authorities(None, environ["SSL_CERT_DIR"])
    for directory in _HASHED_CA_DIRECTORIES:
        if _is_hashed(directory):
            return Authorities(None, directory)
    return Authorities(next((path for path in _CA_BUNDLES if os.access(path, os.R_OK)), None), None)


def _is_hashed(directory: str) -> bool:
    try:
        with os.scandir(directory) as entries:
            return any(len(entry.name) == 10 and entry.name.endswith(".0") for entry in entries)
    except OSError:
        return False

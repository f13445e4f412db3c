"""How to speak TLS, and whom this system trusts. Values, and a look at a few well-known paths."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from ..errors import UsageError
from ..files import check_regular, regular

_HASHED_CA_DIRECTORIES = ("/etc/ssl/certs",)
_CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


class TLS(NamedTuple):
    """How to speak TLS with one origin: paths of PEM files; each of `ca` is trusted beside the system's authorities."""

    ca: tuple[str, ...] = ()
    cert: str | None = None
    key: str | None = None
    verify: bool = True

    def elsewhere(self) -> TLS:
        """Return the same for a host that this one sends us to, which never gets to see the client certificate."""
        return TLS(self.ca, None, None, self.verify)


DEFAULT_TLS = TLS()


class Authorities(NamedTuple):
    """Where the certificates of trusted authorities are: a bundle, a directory indexed by hash, or neither."""

    bundle: str | None
    directory: str | None


def find_authorities(environ: Mapping[str, str]) -> Authorities:
    """$SSL_CERT_FILE, $CURL_CA_BUNDLE, $SSL_CERT_DIR, else this system's own.

    pycurl's wheel brings a libcurl whose built-in path is another distribution's. A hashed directory is preferred:
    OpenSSL then reads the one certificate it needs, where parsing the bundle takes each handle 7 ms. Raises UsageError.
    """
    for variable in ("SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        if environ.get(variable):
            return Authorities(_checked(variable, environ[variable]), None)
    if environ.get("SSL_CERT_DIR"):
        return Authorities(None, environ["SSL_CERT_DIR"])
    for directory in _HASHED_CA_DIRECTORIES:
        if _is_hashed(directory):
            return Authorities(None, directory)
    return Authorities(next((path for path in _CA_BUNDLES if os.access(path, os.R_OK)), None), None)


def _checked(variable: str, path: str) -> str:
    """libcurl opens it: a file that is not there it can tell, but at a FIFO it would wait for ever."""
    try:
        check_regular(os.stat(path), path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError(f"{variable}: cannot read {path}: {error.strerror}") from None
    return path


def merged(paths: tuple[str, ...]) -> bytes:
    """Return the certificates of all `paths` as one PEM text. Raises UsageError for a file that cannot be read.

    libcurl takes one file or one text. A file that has changed since is read again, as a mount lives for weeks.
    """
    try:
        return b"\n".join(_content(path, *_version(path)) for path in paths)
    except OSError as error:
        raise UsageError(f"cannot read the CA certificates in {error.filename}: {error.strerror}") from None


def _version(path: str) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns, found.st_size


@lru_cache(maxsize=16)
def _content(path: str, *_version: int) -> bytes:
    with open(path, "rb", opener=regular) as file:
        return file.read()


def _is_hashed(directory: str) -> bool:
    try:
        with os.scandir(directory) as entries:
            return any(len(entry.name) == 10 and entry.name.endswith(".0") for entry in entries)
    except OSError:
        return False

"""An image reference, `[registry/]repository[:tag][@digest]`, by the grammar of distribution/reference."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UsageError

DOCKER_HUB = "docker.io"
_DOCKER_HUB_LEGACY = "index.docker.io"
_DOCKER_HUB_HOST = "registry-1.docker.io"
_REPOSITORY_MAX = 255  # characters

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[(?P<ipv6>[0-9a-fA-F:]+)\])(?::(?P<port>[0-9]{{1,5}}))?")
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_HEX_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether `text` is `sha256:` or `sha512:` and exactly as many lower-case hex digits as the algorithm gives."""
    return _DIGEST.fullmatch(text) is not None


def check_digest(text: str) -> str:
    """`text` as `algorithm:hex` (OCI image spec, "Digests"); 64 bare hex digits are a sha256. Raises UsageError."""
    if _HEX_SHA256.fullmatch(text):
        return f"sha256:{text}"
    if not is_digest(text):
        raise UsageError(f"{text!r} is not a digest: write sha256: and 64, or sha512: and 128, lower-case hex digits")
    return text


@dataclass(frozen=True, slots=True)
class Reference:
    """A parsed reference; `parse` is the only way in that checks its parts. It never lacks both tag and digest."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse a reference as Docker does; a leading `docker://` is dropped. Raises UsageError, one line."""
        _refuse_url(text)
        name, at, digest = text.removeprefix("docker://").partition("@")
        if at and "/" in digest:
            # What stands before the @ may be a password, so nothing of the text is repeated.
            raise UsageError("an image name holds no credentials: use -o oci.username= and oci.password_file=")
        if at and not is_digest(digest):
            raise UsageError(f"{text!r}: what follows the @ is not a digest (sha256: and 64 lower-case hex digits)")
        if _HEX_SHA256.fullmatch(name):
            raise UsageError(f"{text!r} is a bare image ID; write [REGISTRY/]REPOSITORY@sha256:DIGEST")
        registry, path = _split_registry(name)
        repository, colon, tag = path.partition(":")
        _check_registry(registry, text)
        _check_repository(repository, text)
        if colon and not _TAG.fullmatch(tag):
            raise UsageError(f"{text!r}: {tag!r} is not a tag (up to 128 letters, digits, '_', '.' and '-')")
        return cls(registry, repository, tag if colon else None if at else "latest", digest if at else None)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"

    @property
    def manifest_reference(self) -> str:
        """What to ask the registry for; the digest wins over the tag, since only it says which bytes are meant."""
        return self.digest or self.tag or "latest"

    @property
    def host(self) -> str:
        """`host[:port]` to connect to."""
        return _DOCKER_HUB_HOST if self.registry == DOCKER_HUB else self.registry


def _refuse_url(text: str) -> None:
    scheme, separator, rest = text.partition("://")
    if not separator or scheme == "docker":
        return
    authority, slash, path = rest.partition("/")
    bare = authority.rpartition("@")[2] + slash + path  # a URL may hold a password, which must not be repeated
    insecure = " and add -o oci.insecure for plain HTTP" if scheme.lower() == "http" else ""
    raise UsageError(f"an image is not named by a URL: leave out the scheme and write {bare!r}{insecure}")


def _split_registry(name: str) -> tuple[str, str]:
    """Return the registry and the rest; a first component that can be no part of a repository is a host."""
    first, slash, rest = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost" or first != first.lower()):
        first, rest = DOCKER_HUB, name
    if first == _DOCKER_HUB_LEGACY:
        first = DOCKER_HUB
    if first == DOCKER_HUB and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest


def _check_registry(registry: str, text: str) -> None:
    match = _REGISTRY.fullmatch(registry)
    if not match or (match["ipv6"] and not _is_ipv6(match["ipv6"])):
        raise UsageError(f"{text!r}: {registry!r} is not a registry (HOST[:PORT], an IPv6 address in brackets)")
    if match["port"] and not 0 < int(match["port"]) < 65536:
        raise UsageError(f"{text!r}: {match['port']} is not a port (1 to 65535)")


def _is_ipv6(address: str) -> bool:
    import socket  # deferred: few references need it, and it is slow to load

    try:
        socket.inet_pton(socket.AF_INET6, address)
    except OSError:
        return False
    return True


def _check_repository(repository: str, text: str) -> None:
    name = repository.removeprefix("library/") or repository
    if name in ("", "library/"):
        raise UsageError(f"{text!r} is not an image name: write [REGISTRY/]REPOSITORY[:TAG][@DIGEST]")
    if name != name.lower():
        raise UsageError(f"{text!r}: the repository {name!r} must be in lower case")
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"{text!r}: {name!r} is not a repository (lower-case words, '.', '_', '-' between them)")
    if len(repository) > _REPOSITORY_MAX:
        raise UsageError(f"the repository name is {len(repository)} characters long; at most {_REPOSITORY_MAX} can be")

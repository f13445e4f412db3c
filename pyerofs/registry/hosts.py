"""How this machine configures a registry's hosts: containerd's hosts.toml, and docker's directories of certificates.

containerd, "Registry Configuration": certs.d/HOST/hosts.toml; docker, "Use TLS with registries": certs.d/HOST[:PORT]
with *.crt, *.cert, *.key. Files only, read at each call, no network; nothing is kept: safe from any thread. Everything
wrong with a file is a UsageError that names the file and the key, and repeats no value: a header may be a credential.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import UsageError
from ..files import regular, xdg
from ..http.url import Url, parse
from ..secret import Secret

_HOSTS_FILE = "hosts.toml"
_FILE_MAX = 1 << 20  # bytes
_CAPABILITIES = frozenset(("pull", "resolve", "push"))
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# What a request says by itself. If one came twice, servers would differ in how they read it.
_OWN_HEADERS = frozenset(
    ("accept", "accept-encoding", "connection", "content-length", "host", "range", "transfer-encoding")
)
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{0,9})?(?:ns|us|µs|ms|s|m|h))+")
_DURATION_PART = re.compile(r"([0-9.]+)(ns|us|µs|ms|s|m|h)")
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DOCKER_HUB, _DOCKER_HUB_HOST = "docker.io", "registry-1.docker.io"


class Host(NamedTuple):
    """One place that answers for a registry.

    `url`: the root of its API, such as https://mirror.example/v2; None: the registry's own host, by the scheme that it
    turns out to speak. `capabilities`: what it is trusted with, of pull, resolve, push. `ca`: PEM files that are
    trusted beside the system's authorities. `client`: pairs of certificate and key (PEM; the key may be in the
    certificate's file, and is "" then). `headers`: go with each request to it. `connect_timeout`: seconds. `proxy`: its
    URL, which may hold a password.
    """

    url: Url | None = None
    capabilities: frozenset[str] = _CAPABILITIES
    ca: tuple[str, ...] = ()
    client: tuple[tuple[str, str], ...] = ()
    verify: bool = True
    headers: tuple[tuple[str, Secret], ...] = ()
    connect_timeout: float | None = None
    proxy: Secret | None = None


class HostConfig(NamedTuple):
    """Whom to ask for a registry's images: the mirrors, in order, and last the server."""

    mirrors: tuple[Host, ...] = ()
    server: Host = Host()


class Roots(NamedTuple):
    """Directories with one directory for each host: containerd's, and those with docker's certificates; best first."""

    containerd: tuple[str, ...] = ("/etc/containerd/certs.d",)
    docker: tuple[str, ...] = ("/etc/docker/certs.d", "/etc/containers/certs.d")


def default_roots(environ: Mapping[str, str], uid: int) -> Roots:
    """Return this machine's directories; for an ordinary user preceded by that user's own, as in nerdctl and podman."""
    system = Roots()
    config = xdg(environ, uid, "XDG_CONFIG_HOME", ".config") if uid else None
    if config is None:
        return system
    return Roots(
        (f"{config}/containerd/certs.d", *system.containerd),
        (f"{config}/containers/certs.d", f"{config}/docker/certs.d", *system.docker),
    )


def load(registry: str, roots: Roots) -> HostConfig:
    """Load what is configured for `registry` (host[:port] as in a reference; docker.io for Docker Hub).

    Where hosts.toml does not set the TLS of the registry's own host, docker's directories are searched for it. Raises
    UsageError.
    """
    for directory in _host_directories(roots.containerd, registry):
        path = f"{directory}/{_HOSTS_FILE}"
        text = _read(path)
        if not text.strip():  # as containerd takes it
            return HostConfig(server=_certificates(directory))
        config = _HostsFile(path, text).config()
        if config.server.url is None and not (config.server.ca or config.server.client):
            found = certificates(registry, roots)
            config = config._replace(server=config.server._replace(ca=found.ca, client=found.client))
        return config
    return HostConfig(server=certificates(registry, roots))


def certificates(host: str, roots: Roots) -> Host:
    """Return what docker's directories hold for host[:port]. Raises UsageError."""
    for root in roots.docker:
        directory = f"{root}/{host}"
        if _is_directory(directory):
            return _certificates(directory)
    return Host()


def parse_api_url(text: str, *, override_path: bool = False) -> Url:
    """Return the root of the API at `text`, a URL or host[:port].

    "/v2" is added unless `override_path`. Raises ValueError.
    """
    url = parse(text if "://" in text else f"https://{text}")
    path, question, _ = url.target.partition("?")
    if question:
        raise ValueError("the URL of an API has no query")
    path = path.rstrip("/")
    if not (override_path or path.endswith("/v2")):
        path += "/v2"
    host = _DOCKER_HUB_HOST if url.host == _DOCKER_HUB else url.host
    return url._replace(host=host, target=path or "/")


def _host_directories(roots: Sequence[str], registry: str) -> Iterator[str]:
    if "/" in registry or registry.startswith("."):
        return
    host, colon, port = registry.rpartition(":")
    names = [registry, "_default"]
    if colon and port.isdigit():
        names.insert(0, f"{host}_{port}_")
    for root in roots:
        for name in names:
            if _is_directory(f"{root}/{name}"):
                yield f"{root}/{name}"


def _is_directory(path: str) -> bool:
    """Tell whether it is a directory; False also for what this user may not look at, which is others' configuration."""
    try:
        return os.path.isdir(path)
    except ValueError:  # a NUL in it
        return False


def _read(path: str) -> str:
    """Return the text of `path`, "" where there is no such file. Raises UsageError."""
    try:
        with open(path, "rb", opener=regular) as file:
            data = file.read(_FILE_MAX + 1)
        if len(data) > _FILE_MAX:
            raise UsageError(f"{path} is larger than {_FILE_MAX >> 10} KiB")
        return data.decode()
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None


def _readable(path: str) -> str:
    """`path`, if it is a file that can be read: said now, in words, instead of at the first connection by libcurl."""
    try:
        with open(path, "rb", opener=regular) as file:
            file.read(1)
        return path
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise UsageError("cannot read a file whose name contains a NUL") from None


def check_readable(path: str, name: str) -> str:
    """`path`. Raises UsageError that begins with `name`, the option, unless it can be read."""
    try:
        return _readable(path)
    except UsageError as error:
        raise UsageError(f"{name}: {error}") from None


def _certificates(directory: str) -> Host:
    """*.crt: authorities; NAME.cert with NAME.key: a client certificate."""
    try:
        names = sorted(os.listdir(directory))
    except PermissionError:
        return Host()
    except OSError as error:
        raise UsageError(f"cannot read {directory}: {error.strerror}") from None
    ca = tuple(_readable(f"{directory}/{name}") for name in names if name.endswith(".crt"))
    client = []
    for name in names:
        if name.endswith(".cert"):
            key = f"{name.removesuffix('.cert')}.key"
            paths = (f"{directory}/{name}", f"{directory}/{key}" if key in names else "")
            client.append((_readable(paths[0]), paths[1] and _readable(paths[1])))
    return Host(ca=ca, client=tuple(client))


class _HostsFile:
    """One hosts.toml; each method reads a value, and raises UsageError that names file and key."""

    def __init__(self, path: str, text: str) -> None:
        self._path = path
        self._directory = os.path.dirname(path)
        self._top = self._parse(text)

    def config(self) -> HostConfig:
        hosts = self._top.get("host", {})
        if not isinstance(hosts, dict):
            raise self._wrong("", "host", 'is written [host."URL"]')
        mirrors = []
        for number, (name, table) in enumerate(hosts.items(), 1):  # in the order of the file
            if not isinstance(table, dict):
                raise self._wrong("", f"host number {number}", "is not a table")
            where = f"host number {number}: "
            mirrors.append(self._host(where, self._url(where, "the URL", name, table), table))
        server = self._top.get("server")
        if not isinstance(server, (str, type(None))):
            raise self._wrong("", "server", "is not a string")
        url = self._url("", "server", server, self._top) if server else None
        return HostConfig(tuple(mirrors), self._host("", url, self._top))

    def _parse(self, text: str) -> dict[str, Any]:
        import tomllib  # few machines have such a file

        try:
            return tomllib.loads(text)
        except (ValueError, RecursionError, OverflowError) as error:
            # A parser's message may quote what it could not read.
            line = re.search(r"at line ([0-9]+)", str(error))
            where = f" in line {line[1]}" if line else ""
        raise UsageError(
            f"{self._path} is not TOML: there is an error{where}" if where else f"{self._path} is not TOML"
        )

    def _host(self, where: str, url: Url | None, table: Mapping[str, object]) -> Host:
        skip = self._boolean(where, "skip_verify", table)
        return Host(
            url=url,
            capabilities=self._capabilities(where, table),
            ca=tuple(self._file(where, "ca", path) for path in self._texts(where, "ca", table.get("ca"))),
            client=self._client(where, table.get("client")),
            verify=not skip,
            headers=tuple(self._headers(where, table.get("header"))),
            connect_timeout=self._duration(where, "dial_timeout", table.get("dial_timeout")),
            proxy=self._proxy(where, table.get("proxy")),
        )

    def _url(self, where: str, key: str, text: str, table: Mapping[str, object]) -> Url:
        override = self._boolean(where, "override_path", table)
        try:
            return parse_api_url(text, override_path=override)
        except ValueError:
            raise self._wrong(where, key, "is not a plain http or https URL") from None

    def _boolean(self, where: str, key: str, table: Mapping[str, object]) -> bool:
        value = table.get(key, False)
        if not isinstance(value, bool):
            raise self._wrong(where, key, "is true or false")
        return value

    def _capabilities(self, where: str, table: Mapping[str, object]) -> frozenset[str]:
        named = frozenset(text.lower() for text in self._texts(where, "capabilities", table.get("capabilities")))
        if not named <= _CAPABILITIES:
            raise self._wrong(where, "capabilities", 'are some of "pull", "resolve" and "push"')
        return named or _CAPABILITIES

    def _texts(self, where: str, key: str, value: object) -> list[str]:
        if value is None:
            return []
        values = value if isinstance(value, list) else [value]
        texts = [text for text in values if isinstance(text, str)]
        if len(texts) != len(values):
            raise self._wrong(where, key, "is a string or a list of strings")
        return texts

    def _file(self, where: str, key: str, path: str) -> str:
        """Return the path, seen from the file's directory. Raises UsageError unless it can be read."""
        return check_readable(os.path.join(self._directory, path), f"{self._path}: {where}{key}")

    def _client(self, where: str, value: object) -> tuple[tuple[str, str], ...]:
        pairs = []
        for entry in value if isinstance(value, list) else [] if value is None else [value]:
            pair = [entry, ""] if isinstance(entry, str) else entry
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
                raise self._wrong(where, "client", "is a path, a list of paths, or a list of pairs of paths")
            certificate, key = pair
            pairs.append((self._file(where, "client", certificate), key and self._file(where, "client", key)))
        return tuple(pairs)

    def _headers(self, where: str, value: object) -> Iterator[tuple[str, Secret]]:
        if not isinstance(value, (dict, type(None))):
            raise self._wrong(where, "header", "is a table")
        for name, texts in (value or {}).items():
            if not _HEADER_NAME.fullmatch(name):
                raise self._wrong(where, "header", "has a name that no header can have")
            for text in self._texts(where, f"header {name}", texts):
                if not (text.isascii() and text.isprintable()):
                    raise self._wrong(where, f"header {name}", "has characters that no header can have")
                if name.lower() not in _OWN_HEADERS:
                    yield name, Secret(text)

    def _duration(self, where: str, key: str, value: object) -> float | None:
        """Seconds of a duration as Go writes it; None for none and for 0, which is no limit."""
        if value is None or value == "":
            return None
        if not isinstance(value, str) or not (_DURATION.fullmatch(value) or value == "0"):
            raise self._wrong(where, key, 'is a duration such as "1s" or "500ms"')
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(value))
        return seconds or None

    def _proxy(self, where: str, value: object) -> Secret | None:
        if not isinstance(value, (str, type(None))):
            raise self._wrong(where, "proxy", "is not a string")
        return Secret(value) if value else None

    def _wrong(self, where: str, key: str, what: str) -> UsageError:
        return UsageError(f"{self._path}: {where}{key} {what}")

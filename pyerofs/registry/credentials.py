"""Where credentials come from: options, docker's config.json, containers' auth.json, and the helpers that they name.

Every call reads the files again, so that a mount that lives for weeks follows a `docker login`. Nothing is cached,
nothing shared: safe to call from any thread. docker: config.json's `credHelpers`, `credsStore`, `auths`;
containers-auth.json(5). The last to be asked are kubelet's credential providers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from ..errors import UsageError
from ..files import home, regular, xdg
from ..secret import Secret

_DOCKER_HUB = frozenset(("docker.io", "index.docker.io", "registry-1.docker.io"))
_DOCKER_HUB_KEY = "https://index.docker.io/v1/"  # as docker login calls it
CREDENTIAL_PROVIDERS = "PYEROFS_CREDENTIAL_PROVIDER_CONFIG"  # the variable that names kubelet's file
_IDENTITY_USER = "<token>"  # docker's convention: the password is an identity token


class Credentials(NamedTuple):
    """What is known for one repository; `source` names the place for messages.

    `identity_token`: an OAuth 2 refresh token. `registry_token`: a bearer token as it is. `helper`: nothing is known
    but the name of the program that keeps them, which is not there.
    """

    source: str
    username: str = ""
    password: Secret | None = None
    identity_token: Secret | None = None
    registry_token: Secret | None = None
    helper: str = ""


Lookup = Callable[[], Credentials | None]


def from_options(username: str | None, password: Secret | None, password_file: str | None) -> Lookup | None:
    """Return what oci.username with oci.password or oci.password_file says; None where none is given.

    The file is read at each call. Raises UsageError where one is given without the other.
    """
    if username is None and password is None and password_file is None:
        return None
    if not username or (password is None and not password_file):
        raise UsageError("oci.username goes together with oci.password or oci.password_file")

    def look() -> Credentials:
        secret = password if password is not None else read_password_file(password_file or "")
        return Credentials("the options", username or "", secret)

    return look


def read_password_file(path: str) -> Secret:
    """Return the first line of `path` without its line end. Raises UsageError that names the file."""
    try:
        line = _read(path).partition("\n")[0].rstrip("\r")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such password file") from None
    if not line:
        raise UsageError(f"{path}: the first line, which should be the password, is empty")
    return Secret(line)


def lookup(host: str, repository: str, environ: Mapping[str, str]) -> Credentials | None:
    """Return the first source's credentials for `host` (host[:port]) and `repository`.

    Where there are none, but a config names a credential helper that is not installed, `helper` says so. Raises
    UsageError naming a file or a helper that cannot be used, never its contents; RegistryError for a helper that fails.
    """
    helper: Credentials | None = None
    for source in SOURCES:
        found = source(host, repository, environ)
        if found and not found.helper:
            return found
        helper = helper or found
    return helper


def _docker(host: str, repository: str, environ: Mapping[str, str]) -> Credentials | None:
    directory = environ.get("DOCKER_CONFIG") or ((own := home(environ, os.getuid())) and f"{own}/.docker")
    return _from_file(f"{directory}/config.json", host, (), environ) if directory else None


def _containers(host: str, repository: str, environ: Mapping[str, str]) -> Credentials | None:
    found = (_from_file(path, host, _paths(repository), environ) for path in _containers_files(environ))
    return next((credentials for credentials in found if credentials), None)


def _provided(host: str, repository: str, environ: Mapping[str, str]) -> Credentials | None:
    if CREDENTIAL_PROVIDERS not in environ:
        return None
    from .provider_plugins import provide  # nodes of Kubernetes have them

    found = provide(host, repository, environ)
    return Credentials(found.source, found.username, found.password) if found else None


# The order in which they are asked.
SOURCES: tuple[Callable[[str, str, Mapping[str, str]], Credentials | None], ...] = (_docker, _containers, _provided)


def _containers_files(environ: Mapping[str, str]) -> Iterator[str]:
    if environ.get("REGISTRY_AUTH_FILE"):
        yield environ["REGISTRY_AUTH_FILE"]
        return
    if os.path.isabs(environ.get("XDG_RUNTIME_DIR", "")):
        yield f"{environ['XDG_RUNTIME_DIR']}/containers/auth.json"
    yield f"/run/containers/{os.getuid()}/auth.json"
    if config := xdg(environ, os.getuid(), "XDG_CONFIG_HOME", ".config"):
        yield f"{config}/containers/auth.json"


def _from_file(path: str, host: str, paths: tuple[str, ...], environ: Mapping[str, str]) -> Credentials | None:
    """Return what the helper for the host has, or else the most specific entry of the file.

    That is the entry for the most specific of host/path for each of `paths`, then for the host. A helper comes before
    `auths`, as docker's command line has it: there it leaves its entries empty.
    """
    try:
        text = _read(path)
    except FileNotFoundError:
        return None
    if not text.strip():  # touched, or emptied: as if it were not there
        return None
    config = _object(path, text)
    kept = _from_helper(path, config, host, environ)
    if kept and not kept.helper:
        return kept
    return _from_auths(path, config.get("auths"), host, paths) or kept


def from_text(source: str, text: str, host: str, repository: str) -> Credentials | None:
    """Return what the text of such a file has for a repository, its helpers aside; `source` names it for messages.

    Raises UsageError.
    """
    return _from_auths(source, _object(source, text).get("auths"), host, _paths(repository))


def _paths(repository: str) -> tuple[str, ...]:
    parts = repository.split("/")
    return tuple("/".join(parts[:length]) for length in range(len(parts), 0, -1))


def _from_auths(path: str, auths: object, host: str, paths: tuple[str, ...]) -> Credentials | None:
    if isinstance(auths, dict):
        for wanted in [f"{name}/{each}" for each in paths for name in _names(host)] + _names(host):
            for key, entry in auths.items():
                if _normal(key, bool(paths)) == wanted and isinstance(entry, dict):
                    found = _entry(path, key, entry)
                    if found:
                        return found
    return None


def _from_helper(path: str, config: Mapping[str, object], host: str, environ: Mapping[str, str]) -> Credentials | None:
    helpers = config.get("credHelpers")
    keys = [_DOCKER_HUB_KEY, *_names(host)] if host in _DOCKER_HUB else [host]
    names = [helpers.get(key) for key in keys] if isinstance(helpers, dict) else []
    helper = next((name for name in (*names, config.get("credsStore")) if isinstance(name, str) and name), "")
    if not helper:
        return None
    from . import credential_helper  # few have one

    try:
        if credential_helper.find(helper, environ) is None:
            # Not an error yet: such a config is often copied from another machine, and many images are public.
            return Credentials(path, helper=f"docker-credential-{helper}")
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    kept = credential_helper.get(helper, _DOCKER_HUB_KEY if host in _DOCKER_HUB else host, environ=environ)
    if kept is None:
        return None
    source = f"docker-credential-{helper}"
    if kept.username == _IDENTITY_USER:
        return Credentials(source, identity_token=kept.secret)
    return Credentials(source, kept.username, kept.secret)


def _names(host: str) -> list[str]:
    return [host, *sorted(_DOCKER_HUB - {host})] if host in _DOCKER_HUB else [host]


def _normal(key: str, with_paths: bool) -> str:
    """host or host/path of a key, which may be a URL that ends in an API version, as docker login writes it."""
    key = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    key = key.removesuffix("/v1").removesuffix("/v2")
    return key if with_paths else key.partition("/")[0]


def _entry(path: str, key: str, entry: Mapping[str, object]) -> Credentials | None:
    def text(name: str) -> str:
        value = entry.get(name)
        return value if isinstance(value, str) else ""

    username, password = text("username"), text("password")
    if text("auth"):
        username, password = _user_and_password(path, key, text("auth"))
    identity, token = text("identitytoken"), text("registrytoken")
    if username == _IDENTITY_USER:
        username, password, identity = "", "", password
    if not (username or identity or token):
        return None  # docker leaves an empty entry for what a helper keeps
    return Credentials(
        path,
        username,
        Secret(password) if username else None,
        Secret(identity) if identity else None,
        Secret(token) if token else None,
    )


def _user_and_password(path: str, key: str, auth: str) -> tuple[str, str]:
    import binascii

    try:
        username, colon, password = binascii.a2b_base64(auth, strict_mode=False).decode().partition(":")
    except ValueError:
        colon = ""
    if not colon:
        raise UsageError(f"{path}: 'auth' of {key!r} is not user:password in base64") from None
    return username, password.rstrip("\0")


def _read(path: str) -> str:
    """Return the text of `path`.

    FileNotFoundError is raised as it is, since most of these files need not exist; anything else is a UsageError.
    """
    try:
        with open(path, encoding="utf-8", newline="", opener=regular) as file:
            return file.read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None


def _object(path: str, text: str) -> dict[str, object]:
    import json

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        # The cause stays unspoken: a JSON parser's message may quote what it could not read.
        raise UsageError(f"{path} is not a JSON object")
    return value

"""kubelet's credential providers: programs that a cloud gives its nodes, to pull without stored passwords.

kubernetes.io, "Configure a kubelet image credential provider": kubelet's --image-credential-provider-config names the
programs and the images that each is for, --image-credential-provider-bin-dir has them. A program reads a
CredentialProviderRequest and writes a CredentialProviderResponse. It is run at each renewal: nothing is kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from ..errors import RegistryError, UsageError
from ..files import regular
from ..secret import Secret
from . import small_yaml
from .credential_helper import complain, exchange

CONFIG, DIRECTORY = "PYEROFS_CREDENTIAL_PROVIDER_CONFIG", "PYEROFS_CREDENTIAL_PROVIDER_BIN_DIR"  # names, not secrets
_API = "credentialprovider.kubelet.k8s.io/"
_VERSIONS = (f"{_API}v1", f"{_API}v1beta1", f"{_API}v1alpha1")
_TIMEOUT = 60.0  # seconds, as kubelet has it
_SIZE_MAX = 1 << 20  # bytes of the configuration


class ProvidedLogin(NamedTuple):
    """What a program gave. `source` names it for messages."""

    source: str
    username: str
    password: Secret


class _Provider(NamedTuple):
    name: str
    version: str
    images: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: dict[str, str]


def provide(host: str, repository: str, environ: Mapping[str, str]) -> ProvidedLogin | None:
    """Return what the first program for this image gives; None where none is configured, or none has anything.

    Raises UsageError for a configuration or a program that cannot be used, RegistryError (temporary) for one that
    fails. Any thread.
    """
    path = environ.get(CONFIG, "")
    if not path:
        return None
    directory = environ.get(DIRECTORY, "")
    if not os.path.isabs(directory):
        raise UsageError(f"{CONFIG} needs {DIRECTORY}, the absolute path of the directory with the programs")
    image = f"{'docker.io' if host == 'registry-1.docker.io' else host}/{repository}"
    for provider in _read(path):
        if any(matches(pattern, image) for pattern in provider.images):
            found = _ask(provider, directory, image, environ)
            if found:
                return found
    return None


def matches(pattern: str, image: str) -> bool:
    """Tell whether a pattern is for an image, both HOST[:PORT][/PATH]: globs within a host's words, a path's start."""
    wanted, _, path = pattern.removeprefix("https://").removeprefix("http://").partition("/")
    host, _, repository = image.partition("/")
    wanted, _, wanted_port = wanted.partition(":")
    host, _, port = host.partition(":")
    words, others = wanted.split("."), host.split(".")
    return (
        wanted_port == port
        and len(words) == len(others)
        and all(fnmatchcase(other, word) for word, other in zip(words, others, strict=True))
        and repository.startswith(path)
    )


def _read(path: str) -> Iterator[_Provider]:
    try:
        with open(path, encoding="utf-8", opener=regular) as file:
            config = small_yaml.parse(file.read(_SIZE_MAX))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        said = str(error) if type(error) is ValueError else "it is no JSON, and no YAML"
        raise UsageError(f"{path}: {said}") from None
    providers = config.get("providers") if isinstance(config, dict) else None
    if not isinstance(providers, list):
        raise UsageError(f"{path}: it has no providers: is it a CredentialProviderConfig?")
    for entry in providers:
        try:
            yield _provider(entry)
        except (KeyError, TypeError, AttributeError):
            raise UsageError(f"{path}: a provider lacks its name, apiVersion or matchImages") from None


def _provider(entry: Mapping[str, Any]) -> _Provider:
    name, version = str(entry["name"]), str(entry["apiVersion"])
    if "/" in name or name in (".", "..") or version not in _VERSIONS:
        raise KeyError(name)
    return _Provider(
        name,
        version,
        tuple(map(str, entry["matchImages"])),
        tuple(map(str, entry.get("args") or ())),
        {str(each["name"]): str(each.get("value") or "") for each in entry.get("env") or ()},
    )


def _ask(provider: _Provider, directory: str, image: str, environ: Mapping[str, str]) -> ProvidedLogin | None:
    request = {"apiVersion": provider.version, "kind": "CredentialProviderRequest", "image": image}
    command = [os.path.join(directory, provider.name), *provider.arguments]
    status, output, said = exchange(
        provider.name, command, json.dumps(request).encode(), image, {**environ, **provider.environment}, _TIMEOUT
    )
    if status != 0:
        raise RegistryError(
            f"{provider.name} failed for {image}: {complain(status, said.decode(errors='replace'))}", temporary=True
        )
    try:
        answer = json.loads(output)
        logins = answer["auth"] or {}
        patterns = sorted((pattern for pattern in logins if matches(pattern, image)), reverse=True)
        if not patterns:
            return None
        login = logins[patterns[0]]
        return ProvidedLogin(provider.name, str(login["username"]), Secret(str(login["password"])))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{provider.name} answered with something that is no CredentialProviderResponse") from None

"""Credentials that kubelet brings with a volume: the secret that nodePublishSecretRef names."""

from __future__ import annotations

from collections.abc import Mapping

from ..config.option_text import as_text
from ..errors import UsageError
from ..oci.location import Location
from ..registry.credentials import from_text

KEY = ".dockerconfigjson"  # of a secret of the type kubernetes.io/dockerconfigjson


def credential_options(image: str, secrets: Mapping[str, str]) -> list[str]:
    """Return the options of the image's mount that a secret stands for. They are secret as well.

    Raises UsageError, which never has any of it.
    """
    if not secrets:
        return []
    if KEY not in secrets:
        raise UsageError(f"the secret has no {KEY}: make it with `kubectl create secret docker-registry`")
    location = Location.parse(image)
    if location.kind != "registry":
        return []
    reference = location.reference
    found = from_text("the secret", secrets[KEY], reference.registry, reference.repository)
    if found is None:
        return []
    if not found.username or found.password is None:
        raise UsageError(f"the secret has a token for {reference.registry}: a user and a password are understood")
    return [_option("oci.username", found.username), _option("oci.password", found.password.reveal())]


def _option(name: str, value: str) -> str:
    if '"' not in value:
        return f'{name}="{value}"'
    if value.startswith('"'):
        raise UsageError(f"the secret has a value that cannot be used as {name}: it begins with a double quote")
    return as_text(f"{name}={value}")

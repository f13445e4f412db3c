"""The configuration file: defaults for every option, in TOML; what is written after -o wins.

    [oci]                               # a section and a key are an option: this is oci.timeout
    timeout = 60
    mirror = ["https://mirror.example"]

    [registry."quay.io".oci]            # for images of one registry
    platform = "linux/amd64"

/etc/pyerofs/config.toml and, for users other than root, $XDG_CONFIG_HOME/pyerofs/config.toml before it; or the one file
that $PYEROFS_CONFIG names. The keys are those of config/options.py's table. Files are read at each call, nothing is
kept: safe from any thread. What is wrong is a UsageError that names file and key.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UsageError
from ..files import regular, xdg
from .options import GROUPS, LOG_LEVELS, find_row, is_secret, parse_oci_options, read_layer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ..oci.location import Location
    from .options import Defaults, Kind, ReadOptions

SYSTEM_FILE = "/etc/pyerofs/config.toml"
LOG_VARIABLE = "PYEROFS_LOG"
_FILE_MAX = 1 << 20  # bytes
_REGISTRY = "registry"
# What Python makes of a value in TOML, and how that is called.
TYPES: dict[Kind, tuple[tuple[type, ...], str]] = {
    "text": ((str,), "a text in quotes"),
    "path": ((str,), "an absolute path in quotes"),
    "secret": ((str,), "a text in quotes"),
    "url": ((str,), "a URL in quotes"),
    "flag": ((bool,), "true or false"),
    "number": ((int,), "a whole number"),
    "amount": ((int, float, str), "a number, or a text with a unit in quotes"),
}


class ConfigLayer(NamedTuple):
    """What one place says. `registry`: for its images alone; "" for all. `values`: (name, value) as after -o."""

    origin: str
    registry: str
    values: tuple[tuple[str, str], ...]


class Config(NamedTuple):
    """`layers`: the strongest first. `files`: each file that is looked for, and what became of it."""

    layers: tuple[ConfigLayer, ...] = ()
    files: tuple[tuple[str, str], ...] = ()

    def layers_for(self, location: Location | None = None) -> list[ConfigLayer]:
        """Return those that concern what is there, the strongest first; None: those that concern everything."""
        registry = location.registry if location else ""
        return [layer for layer in self.layers if layer.registry in ("", registry)]

    def defaults(self, location: Location | None = None) -> list[list[tuple[str, str]]]:
        """Return what options.parse_...() takes as defaults. It survives JSON, and may hold secrets."""
        return [list(layer.values) for layer in self.layers_for(location)]


def oci_options(texts: Sequence[str], location: Location | None = None) -> ReadOptions:
    """Parse the `-o` strings of a command that mounts nothing, with this machine's configuration. Raises UsageError."""
    return parse_oci_options(texts, load().defaults(location))


def without_secrets(defaults: Defaults) -> list[list[tuple[str, str]]]:
    """Return the layers without what is secret, and what makes no sense without it, for a file.

    A later load() has the secrets again.
    """
    kept = []
    for layer in defaults:
        secret = {find_row(name).field for name, value in layer if is_secret(name, value)}
        dropped = secret.union(*(group for group in GROUPS if group & secret))
        kept.append([(name, value) for name, value in layer if find_row(name).field not in dropped])
    return kept


def load(environ: Mapping[str, str] | None = None, uid: int | None = None) -> Config:
    """Load this machine's configuration as this process's user and environment have it. Raises UsageError."""
    environ = os.environ if environ is None else environ
    uid = os.geteuid() if uid is None else uid
    layers: list[ConfigLayer] = []
    files: list[tuple[str, str]] = []
    for path in _paths(environ, uid):
        found, state = _read(path, needed="PYEROFS_CONFIG" in environ, own=uid == 0 or path != SYSTEM_FILE)
        layers += found
        files.append((path, state))
    # What is said of one registry is stronger than what is said of all, whichever file it is in.
    layers.sort(key=lambda layer: not layer.registry)
    return Config((*_from_variable(environ), *layers), tuple(files))


def _paths(environ: Mapping[str, str], uid: int) -> list[str]:
    """Return the configuration files, the strongest first."""
    if "PYEROFS_CONFIG" in environ:
        return [os.path.abspath(environ["PYEROFS_CONFIG"])] if environ["PYEROFS_CONFIG"] else []
    own = xdg(environ, uid, "XDG_CONFIG_HOME", ".config") if uid else None
    return [f"{own}/pyerofs/config.toml", SYSTEM_FILE] if own else [SYSTEM_FILE]


def _from_variable(environ: Mapping[str, str]) -> Iterator[ConfigLayer]:
    """PYEROFS_LOG=debug, PYEROFS_LOG=/var/log/pyerofs.log, or both with a comma between them."""
    words = [word for word in environ.get(LOG_VARIABLE, "").split(",") if word]
    values = tuple(("log.level" if word in LOG_LEVELS else "log.to", word) for word in words)
    try:
        read_layer(values)
    except UsageError as error:
        raise UsageError(f"{LOG_VARIABLE}: {error}") from None
    if values:
        yield ConfigLayer(LOG_VARIABLE, "", values)


def _read(path: str, *, needed: bool, own: bool) -> tuple[list[ConfigLayer], str]:
    """`needed`: it must be there. `own`: it must be readable where it is there."""
    try:
        with open(path, "rb", opener=regular) as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_FILE_MAX + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if needed:
            raise UsageError(f"PYEROFS_CONFIG: cannot read {path}: {error.strerror}") from None
        return [], "not there"
    except (OSError, ValueError) as error:
        if isinstance(error, PermissionError) and not own:
            return [], "not for this user"  # it may hold root's passwords
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > _FILE_MAX:
        raise UsageError(f"{path} is larger than {_FILE_MAX >> 10} KiB")
    layers = list(_File(path).layers(_parse(path, data)))
    if mode & 0o077:
        for name, value in (pair for layer in layers for pair in layer.values):
            if is_secret(name, value):
                raise UsageError(f"{path}: {name} is a secret, and others may read the file: chmod 600 {path}")
    return layers, "read"


def _parse(path: str, data: bytes) -> dict[str, Any]:
    import tomllib  # 5 ms that most starts need not spend

    try:
        return tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text") from None
    except (ValueError, RecursionError, OverflowError) as error:
        # A parser's message may quote what it could not read.
        line = re.search(r"at line ([0-9]+)", str(error))
    raise UsageError(f"{path} is not TOML: there is an error in line {line[1]}" if line else f"{path} is not TOML")


class _File:
    """One file's tables; each method raises UsageError that names file and key, and repeats no secret."""

    def __init__(self, path: str) -> None:
        self._path = path

    def layers(self, top: dict[str, Any]) -> Iterator[ConfigLayer]:
        for registry, sections in self._table(_REGISTRY, top.pop(_REGISTRY, {})).items():
            where = f'{_REGISTRY}."{registry}"'
            yield self._layer(registry, f"{where}.", self._table(where, sections))
        yield self._layer("", "", top)

    def _layer(self, registry: str, prefix: str, sections: dict[str, Any]) -> ConfigLayer:
        pairs: list[tuple[str, str]] = []
        for section, table in sections.items():
            keys = table.items() if isinstance(table, dict) else [("", table)]
            for key, value in keys:
                pairs += self._values(prefix, f"{section}.{key}" if key else section, value)
        try:
            read_layer(pairs)
        except UsageError as error:
            raise self._wrong(prefix, str(error)) from None
        return ConfigLayer(self._path, registry, tuple(pairs))

    def _table(self, where: str, value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise UsageError(f'{self._path}: {where} is not a table: write [registry."HOST".oci]')
        return value

    def _values(self, prefix: str, name: str, value: object) -> Iterator[tuple[str, str]]:
        try:
            if "." not in name:  # as the option oci, which is oci.layer
                raise UsageError(f"{name!r} is not a key: write it in a section, as in [oci]")
            row = find_row(name)
        except UsageError as error:
            raise self._wrong(prefix, str(error)) from None
        if prefix and name.startswith("log"):
            raise self._wrong(prefix, f"{name} cannot be set for one registry alone")
        types, words = TYPES[row.kind]
        for each in value if row.many and isinstance(value, list) else [value]:
            if not isinstance(each, types) or (isinstance(each, bool) and bool not in types):
                raise self._wrong(prefix, f"{name} must be {'a list of texts in quotes' if row.many else words}")
            if row.kind == "path" and not os.path.isabs(str(each)):
                raise self._wrong(prefix, f"{name} must be an absolute path")
            yield name, str(each).lower() if isinstance(each, bool) else str(each)

    def _wrong(self, prefix: str, text: str) -> UsageError:
        return UsageError(f"{self._path}: {f'[{prefix[:-1]}] ' if prefix else ''}{text}")

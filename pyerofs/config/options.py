"""The `-o` options: mount(8)'s flags, EROFS's own, and ours (`oci.*`, `cache.*`, `nbd.*`, `log.*`).

A new option of ours is one row of `ROWS` and one field. No message repeats a value that may be a secret.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ..errors import UsageError
from ..oci.platforms import Platform
from ..oci.reference import check_digest
from ..quantity import Limit, parse_limit, parse_size
from ..secret import Secret
from . import values as to
from .mount_flags import MS_RDONLY, MS_SILENT, is_quoted, kernel_options
from .option_text import split
from .values import LOG_PLACES

Driver = Literal["auto", "nbd", "local", "fuse"]
Attach = Literal["auto", "netlink", "ioctl"]
Fill = Literal["none", "idle", "full"]
Verify = Literal["auto", "require", "none"]  # of the two options that are about it
Convert = Literal["auto", "no"]
Prefetch = tuple[str, ...] | Literal["auto", "none"]  # paths in the image
LogLevel = Literal["debug", "info", "warning", "error"]
LOG_LEVELS: tuple[LogLevel, ...] = ("debug", "info", "warning", "error")
Kind = Literal["text", "path", "secret", "url", "flag", "number", "amount"]
# Values written elsewhere than after -o, by (name, value): layers, the strongest first.
Defaults = Sequence[Sequence[tuple[str, str]]]
_IMAGES = "erofs.oci"  # the type of what is an image for sure, whatever its name looks like
_DRIVERS: dict[str, Driver] = {
    "erofs": "auto", "erofs.nbd": "nbd", "erofs.local": "local", "erofs.fuse": "fuse", _IMAGES: "auto",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options of everything that reads an image.

    `blob` is a digest with its algorithm; `layers`: of the image only that many, from its base; `platform` None is this
    machine's; `timeout` in seconds. `mirrors`: URLs, in the order in which they are asked; `ca`: a file; `proxy`: a
    URL, which may hold a password. `fill`: whether unread data is fetched too, `fill_rate` in bytes a second;
    `cache_max`: None for no limit. `verify`: how a layer's chunk index is used. `prefetch`: what a mount fetches before
    it is asked for. `convert`: whether mount converts an image of ordinary layers. `soci`: "auto", "v1" or "no", or the
    digest of the SOCI index to use. `unpacked_max`: bytes that a native layer, or all of an ordinary image, may
    decompress to; None for what their size allows.
    """

    layer: int | None = None
    blob: str | None = None
    layers: int | None = None
    platform: Platform | None = None
    username: str | None = None
    password: Secret | None = None
    password_file: str | None = None
    insecure: bool = False
    cache: str | None = None
    connections: int = 1
    timeout: float = 120.0
    mirrors: tuple[str, ...] = ()
    ca: str | None = None
    proxy: Secret | None = None
    fill: Fill = "none"
    fill_rate: int | None = None
    cache_max: Limit | None = None
    verify: Verify = "auto"
    convert: Convert = "auto"
    prefetch: Prefetch = "auto"
    soci: str = "auto"
    unpacked_max: int | None = None


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Options of a mount.

    `flags` and `data` are for mount(2); `warnings` are for the user. `log_to`: one
    of LOG_PLACES or an absolute path; `verity`: how a layer's dm-verity tree is used; `trace`: the
    file that gets an access trace.
    """

    driver: Driver = "auto"
    flags: int = MS_RDONLY
    data: str = ""
    warnings: tuple[str, ...] = ()
    oci: ReadOptions = ReadOptions()
    loop: bool = False
    attach: Attach = "auto"
    device: str | None = None
    log_to: str = "auto"
    log_level: LogLevel = "info"
    upperdir: str | None = None
    workdir: str | None = None
    verity: Verify = "none"
    trace: str | None = None

    @property
    def upper(self) -> tuple[str, str] | None:
        """Where the changes of a writable mount go."""
        return (self.upperdir, self.workdir) if self.upperdir and self.workdir else None

    @property
    def quiet(self) -> bool:
        return bool(self.flags & MS_SILENT)


_NEEDS_VALUE = object()


class OptionRow(NamedTuple):
    """One option of ours.

    `bare` is its value where none is written; None leaves the field as it is. `many`: it may be given several times,
    and its field is a tuple. `kind`: what it is in a configuration file; a "url" may hold a password, an "amount" is a
    number or a text with a unit.
    """

    name: str
    field: str
    argument: str
    convert: Callable[[str, str], Any]
    text: str
    bare: object = _NEEDS_VALUE
    many: bool = False
    kind: Kind = "text"


_layer = to.whole(0, 9999)
ROWS = (
    OptionRow("oci", "layer", "[=N]", _layer, "SOURCE is an image; N: as oci.layer", bare=None, kind="number"),
    OptionRow("oci.layer", "layer", "=N", _layer, "layer N, base 0 (default: all of EROFS, stacked)", kind="number"),
    OptionRow("oci.blob", "blob", "=DIGEST", to.parsed(check_digest), "the layer with this digest"),
    OptionRow(
        "oci.layers",
        "layers",
        "=N",
        to.whole(1, 9999),
        "the image without what lies above its first N layers",
        kind="number",
    ),
    OptionRow(
        "oci.platform", "platform", "=OS/ARCH[/VARIANT]", to.parsed(Platform.parse), "default: this machine's platform"
    ),
    OptionRow("oci.username", "username", "=NAME", to.text, "user at the registry"),
    OptionRow("oci.password", "password", "=TEXT", to.secret, "its password; a file is safer", kind="secret"),
    OptionRow("oci.password_file", "password_file", "=FILE", to.path, "file that holds the password", kind="path"),
    OptionRow(
        "oci.insecure", "insecure", "[=yes|no]", to.boolean, "the registry speaks plain HTTP", bare=True, kind="flag"
    ),
    OptionRow(
        "oci.mirror", "mirrors", "=URL", to.mirror, "ask this mirror first; may be given several times", many=True
    ),
    OptionRow("oci.ca", "ca", "=FILE", to.path, "more CA certificates to trust (PEM)", kind="path"),
    OptionRow("oci.proxy", "proxy", "=URL", to.secret, "proxy, instead of the environment's", kind="url"),
    OptionRow(
        "oci.verify",
        "verify",
        "=auto|require|none",
        to.one_of("auto", "require", "none"),
        "check each chunk by the layer's index: where it has one",
    ),
    OptionRow("oci.prefetch", "prefetch", "=auto|none|PATHS", to.prefetch, "fetch early what a start reads, or A:B"),
    OptionRow(
        "oci.convert",
        "convert",
        "=auto|no",
        to.one_of("auto", "no"),
        "convert an image of ordinary layers, once (default), or refuse it",
    ),
    OptionRow(
        "oci.soci",
        "soci",
        "=auto|v1|no|DIGEST",
        to.soci,
        "SOCI index of tar layers: the one that the image names (default), one that refers to it, none, or this one",
    ),
    OptionRow(
        "oci.unpacked_max",
        "unpacked_max",
        "=SIZE",
        parse_size,
        "most that layers may decompress to (default: 200 times, 1G)",
        kind="amount",
    ),
    OptionRow("oci.cache", "cache", "=DIR", to.path, "directory of the cache", kind="path"),
    OptionRow(
        "oci.connections", "connections", "=N", to.whole(1, 64), "NBD sockets, 1 to 64 (default: 1)", kind="number"
    ),
    OptionRow(
        "oci.timeout",
        "timeout",
        "=TIME",
        to.seconds,
        "longest wait of a read, seconds or 2m (default: 120)",
        kind="amount",
    ),
    OptionRow("oci.fill", "fill", "=none|idle|full", to.one_of("none", "idle", "full"), "download unread data too"),
    OptionRow("oci.fill_rate", "fill_rate", "=SIZE", parse_size, "limit of oci.fill a second (K, M, G)", kind="amount"),
    OptionRow(
        "oci.verity",
        "verity",
        "[=auto|require|none]",
        to.one_of("auto", "require", "none"),
        "have the kernel verify it by the layer's dm-verity tree",
        bare="require",
    ),
    OptionRow("oci.trace", "trace", "=FILE", to.path, "write what was read first to it at the end", kind="path"),
    OptionRow("oci.upperdir", "upperdir", "=DIR", to.path, "make the mount writable; keeps the changes", kind="path"),
    OptionRow(
        "oci.workdir", "workdir", "=DIR", to.path, "overlayfs's own, on the filesystem of oci.upperdir", kind="path"
    ),
    OptionRow(
        "cache.max", "cache_max", "=SIZE|N%", parse_limit, "evict least recently used blobs beyond it", kind="amount"
    ),
    OptionRow(
        "nbd.attach", "attach", "=auto|netlink|ioctl", to.one_of("auto", "netlink", "ioctl"), "how to attach the device"
    ),
    OptionRow("nbd.device", "device", "=/dev/nbdN", to.nbd_device, "device to use (default: the first free one)"),
    OptionRow("log.to", "log_to", "=WHERE", to.log_place, f"{', '.join(LOG_PLACES)}, or a file (default: auto)"),
    OptionRow("log.level", "log_level", "=LEVEL", to.one_of(*LOG_LEVELS), f"{', '.join(LOG_LEVELS)} (default: info)"),
)
_BY_NAME = {row.name: row for row in ROWS}
_EXCLUSIVE = (("layer", "blob"), ("layer", "layers"), ("blob", "layers"), ("password", "password_file"))
# Options that belong together: a value for one of them drops weaker layers' values for the others.
GROUPS = (
    frozenset(("layer", "blob", "layers")),
    frozenset(("username", "password", "password_file")),
    frozenset(("upperdir", "workdir")),
)

# What goes into ReadOptions: all others are for mount only.
_OCI_ROWS = tuple(row for row in ROWS if row.field in ReadOptions.__slots__)
_MOUNT_ROWS = tuple(row for row in ROWS if row not in _OCI_ROWS)

OCI_HELP: tuple[tuple[str, str, str], ...] = tuple((row.name, row.argument, row.text) for row in _OCI_ROWS)
MOUNT_HELP: tuple[tuple[str, str, str], ...] = tuple((row.name, row.argument, row.text) for row in _MOUNT_ROWS)


def parse_mount_options(texts: Sequence[str], fstype: str = "erofs", defaults: Defaults = ()) -> MountOptions:
    """Parse all `-o` strings of one mount, in their order. Raises UsageError, one line that names the option."""
    driver = _DRIVERS.get(fstype)
    if driver is None:
        raise UsageError(f"unknown file system type {fstype!r}: there are {', '.join(_DRIVERS)}")
    values, names, rest = _take_ours(texts)
    for name in names:
        if name.startswith(("oci", "cache")) and driver == "local":
            raise UsageError(f"{name} does not fit -t erofs.local, which mounts a local file; use -t erofs.nbd")
        if name.startswith("nbd") and driver in ("local", "fuse"):
            raise UsageError(f"{name} does not fit -t {fstype}, which uses no NBD device; use -t erofs.nbd")
    for item in rest:
        _check_prefixed(item)
    values = _with_defaults(values, defaults)
    if ("upperdir" in values) != ("workdir" in values):
        raise UsageError("oci.upperdir and oci.workdir must be given together")
    flags, data, warnings = kernel_options(rest, writable="upperdir" in values)
    return MountOptions(
        driver=driver,
        flags=flags,
        data=data,
        warnings=warnings,
        oci=_oci_options(values),
        loop="loop" in rest,
        **{row.field: values[row.field] for row in _MOUNT_ROWS if row.field in values},
    )


def is_ours(item: str) -> bool:
    """Whether an option is one of ours by its name, known or not."""
    return item.partition("=")[0].lower().startswith(("oci", "nbd", "cache.", "log."))


def _check_prefixed(item: str) -> None:
    """Raise UsageError for an option of ours that lacks its prefix: the kernel would only say that it is invalid."""
    name = item.partition("=")[0]
    for full in (f"{prefix}.{name}" for prefix in ("oci", "cache", "nbd", "log")):
        if full in _BY_NAME and name != "device":  # which EROFS has as well
            raise UsageError(f"unknown option {name!r}: did you mean {full}?")


def names_image(texts: Sequence[str], fstype: str = "erofs") -> bool:
    """Whether the type or some oci option says that what is mounted is an image. Raises UsageError."""
    return fstype == _IMAGES or any(item.startswith("oci") for text in texts for item in split(text))


def parse_oci_options(texts: Sequence[str], defaults: Defaults = ()) -> ReadOptions:
    """Parse the `-o` strings of a command that mounts nothing: `oci` options alone. Raises UsageError."""
    values, names, rest = _take_ours(texts)
    foreign = [item.partition("=")[0] for item in rest] + [name for name in names if _BY_NAME[name] in _MOUNT_ROWS]
    if foreign:
        raise UsageError(f"the option {foreign[0]!r} is for mount only; this command takes oci options alone")
    return _oci_options(_with_defaults(values, defaults))


def _take_ours(texts: Iterable[str]) -> tuple[dict[str, Any], list[str], list[str]]:
    """Values of our options by their field, the names that were written, and all other options as they are."""
    ours: list[tuple[str, str | None]] = []
    rest: list[str] = []
    for item in (item for text in texts for item in split(text)):
        name, equals, value = item.partition("=")
        if not name:
            raise UsageError("an option has a value but no name")
        if is_ours(item):
            ours.append((name, _unquoted(value) if equals else None))
        else:
            rest.append(item)
    return read_layer(ours), [name for name, _ in ours], rest


def read_layer(pairs: Iterable[tuple[str, str | None]]) -> dict[str, Any]:
    """Return the values of options that were written in one place, by their field; None: a name without a value.

    Raises UsageError, also for what does not fit together.
    """
    values: dict[str, Any] = {}
    names: dict[str, str] = {}  # field: the name by which it was given a value
    for name, text in pairs:
        row = find_row(name)
        result = row.bare if text is None else _value(row, text)
        if result is _NEEDS_VALUE:
            raise UsageError(f"{name} needs a value: {name}{row.argument}")
        if result is None:
            continue
        before = names.setdefault(row.field, name)
        if row.many:
            values[row.field] = (*values.get(row.field, ()), result)
        elif values.setdefault(row.field, result) != result:
            two = f"{name} is given twice" if before == name else f"{before} and {name} are given"
            raise UsageError(f"{two}, with different values")
    for first, second in _EXCLUSIVE:
        if first in values and second in values:
            raise UsageError(f"{names[first]} and {names[second]} exclude each other")
    has_password = "password" in values or "password_file" in values
    if "username" in values and not has_password:
        raise UsageError("oci.username needs a password: add oci.password_file= or oci.password=")
    if has_password and "username" not in values:
        raise UsageError("a password needs a user: add oci.username=")
    return values


def chosen(given: Iterable[str], defaults: Defaults) -> dict[str, tuple[Any, int]]:
    """For each field that the layers say something of and `given` says nothing of: its value, and which layer's."""
    found: dict[str, tuple[Any, int]] = {}
    for number, layer in enumerate(defaults):
        said = {*given, *found}
        taken = said.union(*(group for group in GROUPS if group & said))
        found |= {field: (value, number) for field, value in read_layer(layer).items() if field not in taken}
    return found


def _with_defaults(values: dict[str, Any], defaults: Defaults) -> dict[str, Any]:
    return values | {field: value for field, (value, _) in chosen(values, defaults).items()}


def is_option(name: str) -> bool:
    """Whether there is an option of ours with this name."""
    return name in _BY_NAME


def is_secret(name: str, value: str) -> bool:
    """Whether this value of the option must not be shown or written down. Raises UsageError: no such option."""
    kind = find_row(name).kind
    return kind == "secret" or (kind == "url" and "@" in value)


def _value(row: OptionRow, value: str) -> Any:
    if not value:
        raise UsageError(f"{row.name}= has an empty value: write {row.name}{row.argument}")
    return row.convert(row.name, value)


def find_row(name: str) -> OptionRow:
    """Return the option of this name. Raises UsageError that names the nearest one."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    from difflib import get_close_matches  # deferred: only an error needs it

    close = get_close_matches(name.lower(), _BY_NAME, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_BY_NAME)}"
    raise UsageError(f"unknown option {name!r}: {hint}")


def _oci_options(values: dict[str, Any]) -> ReadOptions:
    fields = {row.field for row in _OCI_ROWS}
    return ReadOptions(**{field: value for field, value in values.items() if field in fields})


def _unquoted(value: str) -> str:
    return value[1:-1] if is_quoted(value) else value

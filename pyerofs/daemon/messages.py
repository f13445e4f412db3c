"""What a mount's worker tells its caller to mount, and what of the caller's request may be written down."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from .record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..config.options import LogLevel
    from ..oci.location import Location

# What a daemon that is started by hand in place of one that has died gets of the environment: no secrets.
_ENVIRONMENT = (
    "HOME", "PATH", "LANG", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "PYEROFS_CREDENTIAL_PROVIDER_CONFIG",
    "PYEROFS_CREDENTIAL_PROVIDER_BIN_DIR", "SSL_CERT_FILE", "no_proxy", "NO_PROXY",
)  # fmt: skip
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY")


class _Message:
    """Base of the dataclasses."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        known = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})


@dataclass(frozen=True, slots=True)
class MountRequest(_Message):
    """Ask a worker for a mount.

    `source`: for messages; `location`: what Location.as_list() gave, as get_location() has it again, empty in a request
    of an earlier version;
    `options`: the -o strings; `defaults`: those of the configuration; `driver`: nbd or fuse; `target`: the mount point;
    `verbosity`: 2 for a trace; `directory`: where relative paths are meant; `environment`: the caller's.
    """

    source: str
    fstype: str
    options: list[str]
    driver: str
    target: str
    location: list[str | None] = field(default_factory=list)
    defaults: list[list[tuple[str, str]]] = field(default_factory=list)
    verbosity: int = 0
    directory: str = "/"
    environment: dict[str, str] = field(default_factory=dict)

    def get_location(self) -> Location:
        """Return where the image is.

        In a request of an earlier version there is only what the user wrote, relative to `directory`, which is to be
        the current one. Raises UsageError.
        """
        from ..config.options import names_image
        from ..oci.location import Location

        if self.location:
            return Location.from_list(self.location)
        return Location.parse(self.source, image=names_image(self.options, self.fstype))

    def with_more(
        self, options: Sequence[str] = (), defaults: Sequence[Sequence[tuple[str, str]]] = ()
    ) -> MountRequest:
        """Return the request with options and defaults added behind its own."""
        return replace(self, options=[*self.options, *options], defaults=[*self.defaults, *map(list, defaults)])

    def without_secrets(self) -> tuple[MountRequest, bool]:
        """Return what of the request may be written to a file, and whether it lacks something for that."""
        from ..config import file as config_file  # a supervisor, which only hands a request on, is a small process
        from ..config.option_edits import without_secrets

        options, secrets = without_secrets(self.options)
        environment = {}
        for name, value in self.environment.items():
            if name in _PROXIES and "@" in value:
                secrets = True
            elif name in _ENVIRONMENT or name in _PROXIES or name.startswith("XDG_"):
                environment[name] = value
        defaults = config_file.without_secrets(self.defaults)
        return replace(self, options=options, defaults=defaults, environment=environment, verbosity=0), secrets


@dataclass(frozen=True, slots=True)
class Resume(_Message):
    """Have a worker go on with a mount.

    `sockets`: by a part's id, how many of the descriptors that come with the message are its device's; `supervisor`:
    the process that asks, 0 for another one; with it the last descriptor is that of its heartbeat, and `oom_score` what
    the worker's own is to be.
    """

    record: Record
    restarts: int
    sockets: dict[str, int]
    supervisor: int = 0
    oom_score: str = ""

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Resume:
        found = super(Resume, cls).from_json(values)
        return replace(found, record=Record.from_dict(values["record"]))


@dataclass(frozen=True, slots=True)
class PlannedMount(_Message):
    """One filesystem to mount.

    `path`: what it is mounted from; `layer`: its number; `devices` that its mount needs; `names`: whether it has names
    of its own, or only lends its files to those above it.
    """

    path: str
    layer: int
    devices: list[str]
    names: bool


@dataclass(frozen=True, slots=True)
class MountPlan(_Message):
    """Tell the caller what to mount.

    `source`: what mountinfo is to show, where the kernel takes it; `layers`: base first; `directory`: where they are
    put together, "" for one that is mounted by itself.
    """

    source: str
    directory: str
    layers: list[PlannedMount]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MountPlan:
        found = super(MountPlan, cls).from_json(values)
        return replace(found, layers=[PlannedMount.from_json(layer) for layer in values["layers"]])


@dataclass(frozen=True, slots=True)
class Watch(_Message):
    """Tell a supervisor whom to watch, and what that one's successor is to be asked.

    `request`: None where there can be no successor; `connections` of each device; `timeout`: seconds that a read may
    take; `oom_score`: the worker's; `log`: place and level.
    """

    record: Record
    request: MountRequest | None
    connections: int
    timeout: float
    oom_score: str
    log: tuple[str, LogLevel]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Watch:
        found = super(Watch, cls).from_json(values)
        request = values["request"]
        to, level = values["log"]
        return replace(
            found,
            record=Record.from_dict(values["record"]),
            request=MountRequest.from_json(request) if request else None,
            log=(to, level),
        )


@dataclass(frozen=True, slots=True)
class Handover(_Message):
    """Hand a mount over to another daemon.

    `request`: what this one was asked, secrets included; `sockets`: the count of those that come with it, by part.
    """

    request: MountRequest
    sockets: dict[str, int]

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Handover:
        found = super(Handover, cls).from_json(values)
        return replace(found, request=MountRequest.from_json(values["request"]))

"""What a user calls a source or a destination of images: one value, made once, where the text comes in.

    PATH                          an image file or a block device
    [docker://]REFERENCE          an image at a registry
    oci:DIR[:NAME]                one in an OCI layout directory
    oci-archive:FILE[:NAME]       one in a tar archive of such a directory
    docker-archive:FILE[:NAME]    one in an archive of `docker save`

NAME is the image's tag or reference there, @DIGEST, or @NUMBER (from 0, in the order in which they are listed); FILE
may be `-`, standard input. A new kind is a row of _FORMS, and one of each table that opens it: source/open.py,
source/image_reader.py, images/writer.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ..errors import UsageError
from .reference import Reference, is_digest

Kind = Literal["file", "registry", "oci", "oci-archive", "docker-archive"]
STDIN = "-"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:/@+-]{0,511}")  # OCI image spec, "org.opencontainers.image.ref.name"
_ARCHIVE = re.compile(r"\.(?:tar|tgz|tar\.gz|tar\.zst)$")
_NUMBER = re.compile(r"@[0-9]{1,6}")


class _Form(NamedTuple):
    """How a kind is written. `is_there`: whether a path is what such an image lies in."""

    usage: str
    what: str
    is_there: Callable[[str], bool]


def _is_layout(path: str) -> bool:
    return os.path.isfile(os.path.join(path, "oci-layout"))


_FORMS: dict[Kind, _Form] = {
    "oci": _Form("oci:DIR[:NAME]", "layout directory", _is_layout),
    "oci-archive": _Form("oci-archive:FILE[:NAME]", "archive", os.path.isfile),
    "docker-archive": _Form("docker-archive:FILE[:NAME]", "archive", os.path.isfile),
}
# What other tools call so, and how its images get here. No image of Docker Hub is ever meant.
_FOREIGN = {
    "dir": "`skopeo copy dir:PATH oci:DIR:NAME` makes a layout of it, which oci:DIR:NAME names",
    "containers-storage": "`podman save --format oci-archive -o FILE IMAGE` saves it, and oci-archive:FILE names that",
    "docker-daemon": "`docker save -o FILE IMAGE` saves it, and docker-archive:FILE names that",
    "ostree": "`skopeo copy` takes it into a layout, which oci:DIR:NAME names",
    "sif": "`skopeo copy` takes it into a layout, which oci:DIR:NAME names",
    "tarball": "`skopeo copy` takes it into a layout, which oci:DIR:NAME names",
}


@dataclass(frozen=True, slots=True)
class Location:
    """Where an image is.

    `path` of the file or directory, absolute, or the reference as it was written; `name`: which of several images
    there. Raises UsageError for what is no reference.
    """

    kind: Kind
    path: str
    name: str | None = None
    _reference: Reference | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.kind == "registry":
            object.__setattr__(self, "_reference", Reference.parse(self.path))

    @classmethod
    def parse(cls, text: str, *, image: bool = True) -> Location:
        """Read what the user wrote; `image`: it cannot be the path of an image file. Raises UsageError."""
        kind, colon, rest = text.partition(":")
        for form in _FORMS:
            if colon and kind == form:
                return cls._local(form, text, rest)
        if not image and is_path(text):
            return cls("file", os.path.abspath(text))
        if _ARCHIVE.search(text) and os.path.isfile(text):
            raise UsageError(f"{text!r} is a file: write oci-archive:{text} or docker-archive:{text}")
        if colon and kind in _FOREIGN:
            raise UsageError(f"{text!r}: images in {kind}: cannot be read: {_FOREIGN[kind]}")
        return cls("registry", text)

    @classmethod
    def _local(cls, kind: Kind, text: str, rest: str) -> Location:
        form = _FORMS[kind]
        path, name = _split(rest, form)
        if not path or (path == STDIN and kind == "oci"):
            raise UsageError(f"{text!r} names no {form.what}: write {form.usage}")
        if name and not (_NAME.fullmatch(name) or _NUMBER.fullmatch(name) or is_digest(name.removeprefix("@"))):
            raise UsageError(
                f"{text!r}: {name!r} is not an image name: write {form.usage}, "
                "NAME a tag, a reference, @DIGEST or @NUMBER"
            )
        return cls(kind, path if path == STDIN else os.path.abspath(path), name or None)

    def as_list(self) -> list[str | None]:
        """Return the arguments that make it again, for a message or a record."""
        return [self.kind, self.path, self.name]

    @classmethod
    def from_list(cls, values: Sequence[Any]) -> Location:
        """Return the one that as_list() was asked of, in another process."""
        return cls(*values)

    @property
    def is_file(self) -> bool:
        """Whether it is an image file or a block device, and no image of layers."""
        return self.kind == "file"

    @property
    def reference(self) -> Reference:
        """What of it a registry understands; there is none but of kind "registry"."""
        assert self._reference is not None, self  # noqa: S101 - __post_init__() has parsed it
        return self._reference

    @property
    def registry(self) -> str:
        """The registry's name, as a reference has it; "" where none is asked."""
        return self._reference.registry if self._reference else ""

    @property
    def is_local(self) -> bool:
        """Whether it is an image in files of this machine, which no registry is asked for."""
        return self.kind in _FORMS

    @property
    def digest(self) -> str | None:
        """The digest that the name is, if it is one."""
        name = (self.name or "").removeprefix("@")
        return name if is_digest(name) else None

    def with_tag(self, tag: str) -> Location:
        """Return the image with another tag at the same place. Raises UsageError for what cannot be a tag."""
        if self.kind == "registry":
            reference = self.reference
            text = f"{reference.registry}/{reference.repository}:{tag}"
            if Reference.parse(text).tag != tag:
                raise UsageError(f"{tag!r} is not a tag")
            return Location(self.kind, text)
        return Location._local(self.kind, f"{self.kind}:{self.path}:{tag}", f"{self.path}:{tag}")

    def __str__(self) -> str:
        if self.kind in ("file", "registry"):
            return self.path
        return f"{self.kind}:{self.path}{f':{self.name}' if self.name else ''}"


def is_path(text: str) -> bool:
    """Whether it looks like a path, or exists as one."""
    return text.startswith(("/", "./", "../")) or os.path.exists(text)


def number_of(name: str | None) -> int | None:
    """Return the number that a name is, if it is one."""
    return int(name[1:]) if name and _NUMBER.fullmatch(name) else None


def _split(rest: str, form: _Form) -> tuple[str, str]:
    """Path and name, between which is the first colon, as for skopeo; unless what exists has a colon in its name."""
    colons = [at for at, character in enumerate(rest) if character == ":"]
    for at in (*colons, len(rest)):
        if form.is_there(rest[:at]):
            return rest[:at], rest[at + 1 :]
    path, _, name = rest.partition(":")
    return path, name


def same_registry(source: Location, dest: Location) -> bool:
    """Whether only one registry takes part."""
    return len({place.reference.host for place in (source, dest) if place.registry}) < 2

"""How a place of images is written: REFERENCE, oci:DIR[:TAG] or docker-archive:FILE[:REFERENCE]. Pure values."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from .errors import UsageError
from .reference import Reference

_PREFIXES = ("oci:", "docker-archive:")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def is_place(text: str) -> bool:
    """Whether it names an image in a file or directory of this machine."""
    return text.startswith(_PREFIXES)


class Place(NamedTuple):
    """`kind`: "registry", "oci" or "docker-archive"; `path` of the directory or file, absolute, or the reference
    itself."""

    kind: str
    path: str
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> Place:
        """Raises UsageError."""
        kind, colon, rest = text.partition(":")
        if colon and kind == "docker-archive":
            path, _, name = rest.partition(":")
            if not path:
                raise UsageError(f"{text!r} names no file: write docker-archive:FILE[:REFERENCE]")
            return cls(kind, os.path.abspath(path), name or None)
        if colon and kind == "oci":
            path, colon, tag = rest.rpartition(":")
            if not colon or "/" in tag:
                path, tag = rest, ""
            if not path or (tag and not _TAG.fullmatch(tag)):
                raise UsageError(f"{text!r} is no layout directory: write oci:DIR[:TAG]")
            return cls(kind, os.path.abspath(path), tag or None)
        Reference.parse(text)
        return cls("registry", text)

    def __str__(self) -> str:
        if self.kind == "registry":
            return self.path
        return f"{self.kind}:{self.path}{f':{self.tag}' if self.tag else ''}"


def same_registry(source: str, dest: str) -> bool:
    """Whether only one registry takes part. Raises UsageError."""
    places = (Place.parse(source), Place.parse(dest))
    return len({Reference.parse(place.path).host for place in places if place.kind == "registry"}) < 2

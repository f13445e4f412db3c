"""The tags of a repository, or of an OCI layout directory: `pyerofs tags`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.file import oci_options
from ..context import Context, trace_of_caller
from ..errors import UsageError
from ..oci.location import Location
from ..source.connect import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def tags(
    repository: str, options: Sequence[str] | str = (), *, trace: Callable[[str], None] | None = None
) -> list[str]:
    """Return the tags. Raises PyerofsError."""
    location = Location.parse(repository)
    oci = oci_options([options] if isinstance(options, str) else list(options), location)
    if location.kind == "oci":
        from ..oci.layout import Layout

        return Layout(location.path).tags()
    if location.kind != "registry":
        raise UsageError(f"{location}: tags are listed of a repository, or of oci:DIR")
    from ..registry.tags import list_tags

    registry, transport = connect(location.reference, oci, Context(trace=trace_of_caller(trace)))
    try:
        return list_tags(registry)
    finally:
        transport.close()

"""Names in an archive: what they mean within the image, before any symbolic link is looked at."""

from __future__ import annotations

from ..errors import ImageError

DEPTH_MAX = 400  # directories: deeper trees are made to exhaust recursive code

Parts = tuple[bytes, ...]


def split(name: bytes) -> Parts:
    """Return the parts of a name; a slash in front is the image's root, and "usr/../bin/x" is "bin/x".

    Raises ImageError for one that leads out of the root, and for one too deep.
    """
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                raise ImageError("it leads out of the image")
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    check_depth(len(parts))
    return tuple(parts)


def check_depth(depth: int) -> None:
    """Raise ImageError for a file below more than DEPTH_MAX directories."""
    if depth > DEPTH_MAX:
        raise ImageError(f"it lies {depth} directories deep; at most {DEPTH_MAX} are taken")

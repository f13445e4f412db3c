"""What the cache keeps of tar layers that were read once: their tables, and the contents of small ones.

    DIRECTORY/layers/ALGORITHM-HEX/     of the layer's blob
    DIRECTORY/layers/toc-HEX/           of a layer that is read by its table of contents: see toc_name()
        table       its entries, and where their contents lie (erofs/layer_table.py)
        spans       where spans of it can be inflated by themselves, for `pyerofs index`; where that was run
        contents    the device of a small layer, which each image that has it copies to its primary device
        lock        held while the layer is being read; its mtime is the last use

The contents of all other layers are entries of the cache like all others, also of those that are read by their tables
of contents: these entries need not be complete, since the registry still has what they lack.

A second image that shares a layer fetches and reads only what it does not share. The key is the blob's digest, which
was compared with all of the blob before the table was written; a table of another version is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from ..cache.files import read_file
from ..cache.lock import lock_entry
from ..erofs import chunk_index
from ..erofs.chunk_index import IndexLocation
from ..erofs.layer import Layer
from ..erofs.layer_table import LayerTable
from ..erofs.merge import SMALL_MAX
from ..erofs.toc_layer import VERSION
from ..errors import UnavailableError
from ..files import atomic_write

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..erofs.device_file import DeviceFile
    from ..erofs.toc_layer import TocLayer
    from ..oci.manifest import Descriptor
    from ..tar.toc.spans import SpanTable

NAME = "layers"
_TABLE, _CONTENTS, _SPANS = "table", "contents", "spans"
_TABLE_MAX = 4 << 30  # bytes
CONTENTS_MAX = 2 * SMALL_MAX  # bytes of contents of a layer that was fetched at once, as its table of contents had them


class KeptLayer(NamedTuple):
    """A layer that was read.

    `digest` of the blob, or toc_name(); `table` of its entries. `device`: its contents as a layer of a mount; None for
    a small one, which has `contents`. `is_stargz`: the manifest says that its archive has files of eStargz's own, which
    are not the image's; it is not kept with the layer, which other images may have without that.
    """

    digest: str
    table: LayerTable
    device: Layer | None
    contents: bytes = b""
    is_stargz: bool = False


def path_of(directory: str, digest: str) -> str:
    return os.path.join(directory, NAME, digest.replace(":", "-"))


def toc_name(layer: Descriptor) -> str:
    """Return by what a layer that is read by its table of contents is kept.

    It is for images that say the same of the layer. Whatever they name the table by, what they say decides all that
    is made of it, so that no image makes a table for another one.
    """
    said = json.dumps([VERSION, layer.media_type, layer.digest, layer.size, sorted(layer.annotations.items())])
    return f"toc:{sha256(said.encode()).hexdigest()}"


def load(directory: str, digest: str, *, touch: bool = True) -> KeptLayer | None:
    """Return what is kept of the layer; None where it is not, or cannot be believed. `touch`: this is a use."""
    path = path_of(directory, digest)
    try:
        table = LayerTable.from_bytes(read_file(os.path.join(path, _TABLE), _TABLE_MAX))
        kept = KeptLayer(digest, table, _device(digest, table), _contents(path, table))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    with contextlib.suppress(OSError):  # at worst it is removed too early
        if touch:
            os.utime(os.path.join(path, "lock"), follow_symlinks=False)
    return kept


def _contents(path: str, table: LayerTable) -> bytes:
    """Return the contents of a small layer. Raises OSError, ValueError where they are not what they were."""
    if table.facts["contents"] is None:
        return b""
    data = read_file(os.path.join(path, _CONTENTS), CONTENTS_MAX + 1)
    if sha256(data).hexdigest() != table.facts["contents"]:
        raise ValueError("the layer's contents are damaged")
    return data


def _device(digest: str, table: LayerTable) -> Layer | None:
    mapped = table.facts.get("map")
    if mapped:
        return Layer(0, mapped["blob"], mapped["size"], converted=True, map=mapped["digest"])
    index = table.facts["index"]
    return device_of(digest, table.device_size, index["digest"], index["size"]) if index else None


def save(directory: str, digest: str, table: LayerTable, device: DeviceFile) -> KeptLayer:
    """Keep a layer whose contents are in `device`; the caller holds its lock. Raises OSError."""
    index, data = None, b""
    path = path_of(directory, digest)
    if device.size > SMALL_MAX:
        about = chunk_index.describe(device.size, device.index)
        index = {"digest": about[chunk_index.DIGEST], "size": len(device.index)}
    elif device.size:
        data = device.read(0, device.size)
        atomic_write(os.path.join(path, _CONTENTS), data)
    table.facts.update(index=index, contents=sha256(data).hexdigest() if data else None)
    atomic_write(os.path.join(path, _TABLE), table.to_bytes())
    return KeptLayer(digest, table, _device(digest, table), data)


def save_toc(directory: str, layer: Descriptor, found: TocLayer, contents: bytes | None = None) -> KeptLayer:
    """Keep a layer that is read by its table of contents; the caller holds its lock. Raises OSError.

    `contents`: of a small layer, all that is on its device; None: they stay where they are.
    """
    name, table = toc_name(layer), found.table
    if contents is not None:
        if contents:
            atomic_write(os.path.join(path_of(directory, name), _CONTENTS), contents)
        table.facts.update(index=None, contents=sha256(contents).hexdigest() if contents else None, map=None)
        atomic_write(os.path.join(path_of(directory, name), _TABLE), table.to_bytes())
        return KeptLayer(name, table, None, contents)
    digest = f"sha256:{sha256(found.chunk_map).hexdigest()}"
    mapped = {"blob": layer.digest, "size": layer.size, "digest": digest} if table.device_size else None
    table.facts.update(index=None, contents=None, map=mapped)
    atomic_write(os.path.join(path_of(directory, name), _TABLE), table.to_bytes())
    return KeptLayer(name, table, _device(name, table))


def device_of(digest: str, size: int, index_digest: str, index_size: int) -> Layer:
    """Describe `size` bytes of contents, made of the blob `digest`, as a layer that a chunk index vouches for."""
    where = IndexLocation(size, size + index_size, index_digest, False)
    return Layer(0, digest, size + index_size, index=where, converted=True)


def save_spans(directory: str, digest: str, spans: SpanTable) -> None:
    """Keep the spans of a layer that is kept; the caller holds its lock. Raises OSError."""
    atomic_write(os.path.join(path_of(directory, digest), _SPANS), spans.to_bytes())


def load_spans(directory: str, kept: KeptLayer) -> SpanTable | None:
    """Return the spans of a layer; None where none are kept, or they cannot be believed."""
    from ..tar.toc.spans import SPACING, SpanTable  # deferred: a mount needs none

    try:
        found = SpanTable.from_bytes(read_file(os.path.join(path_of(directory, kept.digest), _SPANS), _TABLE_MAX))
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return found if len(found.places) == len(kept.table) and found.spacing == SPACING else None


def prune(directory: str, used: set[str], has: Callable[[Layer], bool], since: float) -> None:
    """Remove the tables of layers that no converted image has (`used`: their digests), unless they are being made.

    Those that were used after `since` (seconds since 1970), by `pyerofs convert`, stay as well, as long as the cache
    `has` their contents. Raises UnavailableError.
    """
    try:
        names = os.listdir(os.path.join(directory, NAME))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UnavailableError(f"cannot look into the cache {directory}: {error.strerror}") from None
    for name in names:
        if name.replace("-", ":", 1) in used:
            continue
        path = os.path.join(directory, NAME, name)
        if _used(path) > since:
            kept = load(directory, name.replace("-", ":", 1), touch=False)
            if kept is not None and (kept.device is None or has(kept.device)):
                continue
        try:
            lock = lock_entry(path, _busy)
        except (BlockingIOError, OSError):
            continue
        if lock is not None:
            try:
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _used(path: str) -> float:
    try:
        return os.lstat(os.path.join(path, "lock")).st_mtime
    except OSError:
        return 0.0


def _busy() -> None:
    raise BlockingIOError

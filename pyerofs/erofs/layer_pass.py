"""One pass over a tar layer: its blob comes, is decompressed and parsed, and its contents are laid out, all at once.

Nothing is unpacked, and nothing is kept but a table of the entries and a file with the contents, each at a block of its
own. What came is believed when its end has: the blob's digest and the diff ID are compared then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ..errors import ImageError
from ..tar.decompress import LayerStream
from ..tar.reader import FILE, Tar
from .layer_table import LayerTable
from .laying import Laying

if TYPE_CHECKING:
    from ..tar.allowance import Allowance
    from ..tar.toc.spans import SpanRecorder
    from .device_file import DeviceFile


class HashedStream(Protocol):
    """A layer's blob as it comes; finish() raises ImageError where it has another digest."""

    def read(self, count: int, /) -> bytes: ...

    def finish(self) -> None: ...


def read_layer(
    stream: HashedStream,
    device: DeviceFile,
    diff_id: str,
    allowance: Allowance | None = None,
    spans: SpanRecorder | None = None,
) -> LayerTable:
    """Read the layer to its end, lay its contents into `device`, and return the table of its entries.

    `diff_id`: what the decompressed layer must hash to, by its own algorithm; `allowance`: what it may decompress to.
    `spans` is told of the blob, and where in it each entry's content is.
    Raises ImageError, UnavailableError, RegistryError; OSError where the device cannot be written. Four threads share
    the work: the stream's, one that decompresses, this one, and the device's; after an error the second of them ends
    when the stream does.
    """
    table = LayerTable()
    laying = Laying(table.contents, 0, device.land)
    plain = LayerStream(stream, diff_id.partition(":")[0], allowance, spans, ahead=True)
    try:
        tar = Tar(plain.read)
        for entry in tar:
            content = 0
            if spans:
                spans.entry(tar.position, whole=entry.kind != FILE or tar.is_whole)
            if entry.kind == FILE:
                content = laying.lay(entry.size, tar.data())
                device.settle(laying.size)
            table.add(entry, content)
        found = plain.finish()
    finally:
        plain.close()
    stream.finish()
    if spans:
        spans.archive = plain.size
    if found != diff_id:
        raise ImageError(f"the layer has another content than the config says: {found} instead of {diff_id}")
    device.finish()
    table.device_size = device.size
    table.facts["diff_id"] = found
    return table

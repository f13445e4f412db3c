"""Bytes of converted images that the cache has lost, made once more out of what the registry has.

A layer is read again from its beginning, a primary device is laid anew out of kept tables; either into a file without
a name, which later reads use. Nothing here is believed: the chunk index of the device, which the first conversion made,
decides (chunked.py).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ..cache.paths import chosen_directory, make_directory
from ..erofs.device_file import DeviceFile
from ..erofs.layer_pass import read_layer
from ..errors import ImageError, PyerofsError, RegistryError
from ..http.request import ByteCounter
from ..oci.manifest import Descriptor
from . import kept_layers
from .layer_blob import stream_layer
from .merged import lay_primary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ..config.options import ReadOptions
    from ..oci.location import Location
    from ..registry.range_response import Cancel, Sink
    from .kept_layers import KeptLayer

_PIECE = 1 << 20  # bytes


class RemadeBlobs:
    """The devices of one converted image, by the digests of its layers and of its manifest. Any thread.

    `layers_of`: names of an image's layers by its manifest's digest, and whether KeptLayer has them as is_stargz; None
    where they are not known. A device that was made is kept until close().
    """

    def __init__(
        self,
        location: Location | None,
        name: str,
        options: ReadOptions,
        layers_of: Callable[[str], Sequence[tuple[str, bool]] | None],
    ) -> None:
        self.giver = ""
        self.received = ByteCounter()
        self._location = location
        self._name = name
        self._options = options
        self._layers_of = layers_of
        self._lock = threading.Lock()  # held while a device is made
        self._devices: dict[str, DeviceFile] = {}
        self._borrowed = False  # whether another object closes them

    @classmethod
    def of_device(cls, digest: str, device: DeviceFile, name: str, options: ReadOptions) -> RemadeBlobs:
        """Return blobs of which one has been made already; the device stays the caller's."""
        found = cls(None, name, options, lambda _: None)
        found._devices[digest] = device
        found._borrowed = True
        return found

    def blob(self, digest: str, size: int, log: Callable[[str], None] | None = None) -> _RemadeBlob:
        return _RemadeBlob(self, digest, size, log or (lambda _: None))

    def read(self, digest: str, offset: int, length: int, log: Callable[[str], None], cancel: Cancel) -> bytes:
        """Return bytes of a device, and behind it of its index, which is made first if need be.

        Raises RegistryError.
        """
        with self._lock:
            device = self._devices.get(digest)
            if device is None:
                log(f"{self._name}: bytes of {digest} are lost in the cache: reading and converting it again")
                try:
                    device = self._devices[digest] = self._make(digest, cancel)
                except RegistryError:
                    raise
                except (PyerofsError, OSError, InterruptedError) as error:
                    raise RegistryError(f"{self._name}: {digest} cannot be converted again: {error}") from None
        end = min(device.size, offset + length)
        data = device.read(offset, end - offset) if offset < device.size else b""
        rest = offset + len(data) - device.size
        return data + (device.index[rest : rest + length - len(data)] if rest >= 0 else b"")

    def _make(self, digest: str, cancel: Cancel) -> DeviceFile:
        directory = chosen_directory(self._options)
        make_directory(directory)
        device = DeviceFile(directory)
        device.unname()
        try:
            kept = kept_layers.load(directory, digest)
            if kept is not None:
                self._read_layer(kept, device, cancel)
            else:
                self._lay_primary(digest, device)
        except BaseException:
            device.close()
            raise
        return device

    def _read_layer(self, kept: KeptLayer, device: DeviceFile, cancel: Cancel) -> None:
        from .image_reader import open_reader  # deferred: few mounts ever need it

        if self._location is None:
            raise ImageError("it is not known where it came from")
        facts = kept.table.facts
        reader = open_reader(self._location, self._options)
        try:
            layer = Descriptor("", kept.digest, facts["size"])
            directory = chosen_directory(self._options)
            with stream_layer(reader, layer, directory, self._options.timeout, cancel=cancel) as stream:
                read_layer(stream, device, facts["diff_id"])
        finally:
            reader.close()

    def _lay_primary(self, digest: str, device: DeviceFile) -> None:
        directory = chosen_directory(self._options)
        layers = []
        names = self._layers_of(digest)
        if names is None:
            raise ImageError("what was kept of the image is gone: mount it once more, anywhere")
        for layer, is_stargz in names:
            kept = kept_layers.load(directory, layer)
            if kept is None:
                raise ImageError(f"what was kept of its layer {layer} is gone: mount the image once more, anywhere")
            layers.append(kept._replace(is_stargz=is_stargz))
        lay_primary(layers, device)

    def close(self) -> None:
        with self._lock:
            if not self._borrowed:
                for device in self._devices.values():
                    device.close()
            self._devices = {}


class _RemadeBlob:
    """A device with its index behind it, as a blob."""

    def __init__(self, blobs: RemadeBlobs, digest: str, size: int, log: Callable[[str], None]) -> None:
        self.digest = digest
        self.size = size
        self.checked = False
        self.directory: str | None = None
        self._blobs = blobs
        self._log = log

    def read_range(
        self,
        offset: int,
        length: int,
        sink: Sink,
        *,
        whole: Callable[[], None] | None = None,
        cancel: Cancel | None = None,
        begun: Callable[[], bool] | None = None,
    ) -> int:
        """Give the bytes to sink(offset, piece), as Blob does. Raises RegistryError."""
        given = 0
        ended = cancel or (lambda: False)
        while given < length and not ended():
            piece = self._blobs.read(self.digest, offset + given, min(_PIECE, length - given), self._log, ended)
            if not piece:
                raise RegistryError(f"{self.digest} became another device when it was converted again")
            given += len(piece)
            if not sink(offset + given - len(piece), piece):
                break
        return given

"""The layers of an ordinary image, each read once by one stream, and kept in the cache by its digest.

A layer that another image or an earlier conversion has brought is neither fetched nor read again. Layers are locked one
by one, so that two conversions that share some wait for each other there only.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Self

from ..cache.adopt import adopt
from ..cache.paths import make_directory
from ..context import NOBODY
from ..erofs.device_file import DeviceFile
from ..erofs.layer_pass import read_layer
from ..errors import ImageError, UnavailableError
from ..export.base import Export
from ..source import kept_layers
from ..source.converted_cache import hold_complete, locked
from ..source.index_file import find_index, keep_index
from ..source.kept_layers import load_spans
from ..source.kinds import open_source
from ..source.layer_blob import stream_layer, streams_of
from ..source.plan import with_index
from ..source.remade import RemadeBlobs
from ..tar.allowance import Allowance
from .copy import short_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future

    from ..cache.entry import Entry
    from ..config.options import ReadOptions
    from ..erofs.layer import Layer
    from ..oci.manifest import Descriptor
    from ..source.image_reader import ImageReader
    from ..source.kept_layers import KeptLayer
    from .copy import Meter

NO_SPANS = "no_spans"
STREAMS = 8  # layers that are fetched at the same time


class HeldLayer(NamedTuple):
    """A layer that was read, and its contents in the cache, in use until close(); None for a small layer."""

    kept: KeptLayer
    entry: Entry | None

    def read(self, offset: int, length: int) -> bytes:
        """Return contents of the layer, fewer bytes at their end."""
        if self.entry is None:
            return self.kept.contents[offset : offset + length]
        return os.pread(self.entry.data_fd, length, offset)

    def close(self) -> None:
        if self.entry is not None:
            self.entry.close()


class CachedLayers:
    """Reads layers of one image. `work`: a directory of the cache's filesystem; `what` names the image in progress.

    `allowance`: bytes that all layers may decompress to; `copied`: contents will be copied, and those that were kept
    are checked before; `spans`: what spans the layers have is kept too, and where it was not they are read again, or
    it is said in the fact NO_SPANS of a table why there are none. `close()` gives up the layers that are held. Raises
    ImageError, RegistryError, UnavailableError, OSError.
    """

    def __init__(
        self,
        reader: ImageReader,
        directory: str,
        work: str,
        options: ReadOptions,
        shown: Meter,
        allowance: Allowance,
        what: str = "",
        *,
        copied: bool = False,
        spans: bool = False,
    ) -> None:
        self._reader = reader
        self._directory = directory
        self._work = work
        self._options = options
        self._shown = shown
        self._allowance = allowance
        self._what = what
        self._copied = copied
        self._spans = spans
        self._lock = threading.Lock()
        self._ended = False
        self._done: dict[str, int] = {}  # bytes of each layer that have come
        self._total = 0
        self._held: list[HeldLayer] = []
        self._futures: list[Future[HeldLayer]] = []
        self._failure: BaseException | None = None
        self._stack = contextlib.ExitStack()

    def get_all(self, layers: Sequence[Descriptor], diff_ids: Sequence[str]) -> list[HeldLayer]:
        """Return the layers, the base first: what is kept of them, or else what is read now, several at once."""
        self.begin(layers, diff_ids)
        return [self.get(number) for number in range(len(layers))]

    def begin(self, layers: Sequence[Descriptor], diff_ids: Sequence[str]) -> None:
        """Begin to read the layers, several at once; get() returns them."""
        self._total = sum(layer.size for layer in layers)
        make_directory(self._directory)
        make_directory(os.path.join(self._directory, kept_layers.NAME))
        self._stack.enter_context(uncollected())
        # From the network, each waits most of the time; from a disk, each is work for one core and more.
        threads = streams_of(self._reader, STREAMS)
        pool = ThreadPoolExecutor(max_workers=max(1, min(threads, len(layers))), thread_name_prefix="pyerofs-layer")
        self._stack.callback(pool.shutdown, cancel_futures=True)
        self._stack.callback(self._end)
        self._futures = [
            pool.submit(self._get, number, len(layers), layer, diff_id)
            for number, (layer, diff_id) in enumerate(zip(layers, diff_ids, strict=True))
        ]

    def get(self, number: int) -> HeldLayer:
        """Return a layer when it has been read. Raises what ended the reading of any of them."""
        try:
            return self._futures[number].result()
        except Exception:
            if self._failure is not None:  # which ended the others
                raise self._failure from None
            raise

    def _end(self) -> None:
        self._ended = True

    def _get(self, number: int, count: int, layer: Descriptor, diff_id: str) -> HeldLayer:
        name = f"{self._what}layer {number + 1} of {count}"
        try:
            with locked(kept_layers.path_of(self._directory, layer.digest), lambda: None):
                if self._ended:
                    raise InterruptedError
                held = self._find(layer, diff_id)
                how = "kept"
                if held is None:
                    held = self._read(layer, diff_id)
                    how = "converted"
                with self._lock:
                    self._held.append(held)
                    self._done[layer.digest] = layer.size
                    self._shown.done(f"{name}  {short_digest(layer.digest)}", layer.size, how)
        except BaseException as error:
            with self._lock:
                if self._failure is None and not self._ended:
                    self._failure = error
                self._ended = True
            raise
        return held

    def _find(self, layer: Descriptor, diff_id: str) -> HeldLayer | None:
        kept = kept_layers.load(self._directory, layer.digest)
        if kept is None:
            return None
        if self._spans and NO_SPANS not in kept.table.facts and load_spans(self._directory, kept) is None:
            return None
        known = kept.table.facts["diff_id"]
        if known.partition(":")[0] != diff_id.partition(":")[0]:
            return None  # by another algorithm: it has to be read to be compared
        if known != diff_id:
            raise ImageError(
                f"layer {short_digest(layer.digest)} has another content than the config says: "
                f"{known} instead of {diff_id}"
            )
        if kept.device is None:
            return HeldLayer(kept, None)
        entry = hold_complete(self._directory, kept.device)
        if entry is not None and self._copied and not self._is_sound(kept.device, entry):
            entry.close()
            return None
        return HeldLayer(kept, entry) if entry is not None else None

    def _is_sound(self, device: Layer, entry: Entry) -> bool:
        """Tell whether contents still have the hashes of their index: who copies them has no other check."""
        found = find_index(device, self._directory)
        if found is None:
            return False
        try:
            for number in range(len(found.chunks)):
                chunk = found.chunks.chunk(number)
                chunk.verify(os.pread(entry.data_fd, chunk.length, chunk.start))
        except ImageError:
            return False
        return True

    def _read(self, layer: Descriptor, diff_id: str) -> HeldLayer:
        def progress(done: int) -> None:
            with self._lock:
                self._done[layer.digest] = done
                self._shown.update(f"{self._what}read", sum(self._done.values()), self._total)

        with DeviceFile(self._work) as device, contextlib.ExitStack() as stack:
            recorder = None
            if self._spans:
                from ..tar.toc.spans import SpanRecorder  # deferred: a mount needs none

                recorder = SpanRecorder()
                stack.callback(recorder.close)
            try:
                with stream_layer(
                    self._reader,
                    layer,
                    self._work,
                    self._options.timeout,
                    progress=progress,
                    cancel=lambda: self._ended,
                ) as stream:
                    table = read_layer(stream, device, diff_id, self._allowance, recorder)
            except ImageError as error:
                raise ImageError(f"layer {short_digest(layer.digest)}: {error}") from None
            table.facts["size"] = layer.size
            found = recorder.finish() if recorder else None
            if recorder and found is None:
                table.facts[NO_SPANS] = "it has a sparse file" if recorder.sparse else "its compression has none"
            kept = kept_layers.save(self._directory, layer.digest, table, device)
            if found:
                kept_layers.save_spans(self._directory, layer.digest, found)
            return HeldLayer(kept, self._store(kept.device, device))

    def _store(self, layer: Layer | None, device: DeviceFile) -> Entry | None:
        if layer is None:
            return None
        entry = store_device(self._directory, layer, device, self._options, self._reader.name)
        if self._copied and device.path and not self._is_sound(layer, entry):  # others use it: it was not replaced
            _restore(layer, device, self._options, self._reader.name)
            if not self._is_sound(layer, entry):
                entry.close()
                raise UnavailableError(f"{self._directory} does not keep what is written there: is the disk failing?")
        return entry

    def close(self) -> None:
        self._stack.close()
        for held in self._held:
            held.close()
        self._held = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector from looking, again and again, through entries that are in no cycle.

    It takes a third of the time that a layer takes.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def store_device(directory: str, layer: Layer, device: DeviceFile, options: ReadOptions, name: str) -> Entry:
    """Make a device an entry of the cache, and return it in use. `layer`: as a mount will name it.

    Where others use an entry that lacks something, that is restored from the device, for them too. Raises OSError,
    UsageError, UnavailableError.
    """
    if adopt(directory, layer.verified_key, device):
        from ..cache.paths import entry_path

        keep_index(entry_path(directory, layer.verified_key), device.index)
    else:
        _restore(layer, device, options, name)
    entry = hold_complete(directory, layer)
    if entry is None:
        raise UnavailableError(f"cannot keep the converted layers of {name} in {directory}: they are gone again")
    return entry


def _restore(layer: Layer, device: DeviceFile, options: ReadOptions, name: str) -> None:
    blobs = RemadeBlobs.of_device(layer.digest, device, name, options)
    # What the cache says of it is ignored: whether all is there is looked at afterwards.
    source = open_source(name, layer, blobs, blobs, replace(with_index(options), fill="none"), NOBODY)
    with contextlib.closing(Export(source, replace(options, fill="none"))) as export:
        buffer = memoryview(bytearray(min(1 << 20, export.size)))
        for at in range(0, export.size, len(buffer)):
            export.read_into(buffer[: export.size - at], at)

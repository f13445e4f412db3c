"""Converting an ordinary image into the cache: what source/converted_cache.py finds there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from ..cache import counters
from ..cache.paths import chosen_directory, make_directory
from ..erofs import chunk_index
from ..erofs.compose import ROLE
from ..erofs.device_file import DeviceFile
from ..erofs.foreign import obstacle
from ..erofs.layer import MAP
from ..erofs.layer_way import judge_layers
from ..errors import ImageError, UnavailableError, cannot
from ..events import sigterm_interrupts
from ..files import atomic_write
from ..oci.image_config import make_manifest, read_config
from ..oci.manifest import Descriptor, Manifest, parse
from ..oci.raw_manifest import descriptor
from ..source import kept_layers
from ..source.converted_cache import IMAGE, NAME, VERSION, WORK, find_converted, locked, path_of
from ..source.image_reader import RegistryReader, open_reader
from ..source.merged import lay_primary
from ..source.original_blobs import LocalBlobs
from ..source.soci_index import with_ztocs
from ..tar.allowance import Allowance
from ..tar.toc.keys import STARGZ_DIGEST
from .cached_layers import CachedLayers, store_device
from .conversion_checks import check_platform, check_room
from .convert import left_out_line, read_blob
from .layer import MEDIA_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ..config.options import ReadOptions
    from ..erofs.layer import Layer
    from ..source.converted_cache import ConversionRequest, ConvertedImage
    from ..source.image_reader import ImageReader
    from ..source.kept_layers import KeptLayer
    from .cached_layers import HeldLayer
    from .copy import Meter


def convert(
    task: ConversionRequest, options: ReadOptions, report: Callable[[str], None], shown: Meter
) -> ConvertedImage:
    """Convert the image into the cache, or wait for another process that is doing so.

    `report` gets a line before it begins and one for what cannot be taken over, `shown` how far it is. Raises
    PyerofsError. A conversion that fails or is interrupted leaves the layers that were complete, which the next one
    uses, and nothing else that counts; one that is killed also leaves what it was making, which the next one removes.
    """
    directory = chosen_directory(options)
    path = path_of(directory, task.digest)
    try:
        make_directory(directory)
        make_directory(os.path.join(directory, NAME))
        with locked(path, lambda: report(f"{task.name} is being converted by another process: waiting for it")):
            found = find_converted(directory, task.digest, task.name, options)
            if found is None:
                found = _convert(task, directory, options, shown, report)
                counters.add(directory, counters.Counters(conversions=1))
            return found
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = f": free some room in {directory}, or choose another directory with oci.cache=DIR" if full else ""
        raise cannot(f"convert {task.name}", error, hint) from None


def _convert(
    task: ConversionRequest, directory: str, options: ReadOptions, shown: Meter, report: Callable[[str], None]
) -> ConvertedImage:
    path = path_of(directory, task.digest)
    with sigterm_interrupts(), _work_directory(path) as work, contextlib.ExitStack() as stack:
        reader = open_reader(task.location, options)
        stack.callback(reader.close)
        try:
            manifest = parse(reader.document(Descriptor("", task.digest, 0)).body)  # whatever the tag means by now
            problem = obstacle(manifest) if isinstance(manifest, Manifest) else "it is an index"
            if problem or not isinstance(manifest, Manifest) or manifest.config is None:
                raise ImageError(problem)
            indexed = with_ztocs(manifest, task.digest, reader, options, lambda line: report(f"{task.name}: {line}"))
            held = _get_layers(task, indexed.manifest, reader, directory, work, options, shown, report, stack)
            device = stack.enter_context(DeviceFile(work))
            merged = lay_primary([layer.kept for layer in held], device)
        except ImageError as error:
            raise ImageError(f"{task.name}: {error}") from None
        if merged.left_out:
            report(f"{task.name}: {left_out_line(merged.left_out)}")
        about = chunk_index.describe(device.size, device.index)
        primary = kept_layers.device_of(task.digest, device.size, about[chunk_index.DIGEST], len(device.index))
        stack.callback(store_device(directory, primary, device, options, task.name).close)
        devices = [layer for number in merged.devices if (layer := held[number].kept.device)]
        _write_image(task, path, devices, primary, [layer.kept for layer in held], indexed.unbound)
        found = find_converted(directory, task.digest, task.name, options)
    if found is None:
        raise UnavailableError(f"{task.name} was converted, but parts of it in {directory} are gone again")
    return found


def _get_layers(
    task: ConversionRequest,
    manifest: Manifest,
    reader: ImageReader,
    directory: str,
    work: str,
    options: ReadOptions,
    shown: Meter,
    report: Callable[[str], None],
    stack: contextlib.ExitStack,
) -> list[HeldLayer]:
    """Return the layers, in use until the stack is closed: first those with a table of contents, then all others."""
    allowance = Allowance(sum(layer.size for layer in manifest.layers), options.unpacked_max)
    held: dict[int, HeldLayer] = {}
    ways = judge_layers(manifest.layers)
    listed = [number for number, way in enumerate(ways) if way.format]
    if listed:
        from .lazy_layers import LazyLayers  # deferred: most images have none

        blobs = reader.registry if isinstance(reader, RegistryReader) else LocalBlobs(task.location)
        tables = LazyLayers(blobs, directory, options, allowance, lambda line: report(f"{task.name}: {line}"))
        found = tables.get_all([(manifest.layers[number], ways[number]) for number in listed])
        held = {number: layer for number, layer in zip(listed, found, strict=True) if layer is not None}
        for layer in held.values():
            stack.callback(layer.close)
    rest = [number for number in range(len(manifest.layers)) if number not in held]
    if rest:
        report(
            f"{task.name} has no EROFS layers ({task.summary}): converting it into {directory}, once "
            "(oci.convert=no refuses)"
        )
        assert manifest.config is not None  # noqa: S101 - the caller has looked
        check_room(directory, [manifest.layers[number] for number in rest])
        config, diff_ids = read_config(read_blob(reader, manifest.config, work), len(manifest.layers))
        check_platform(config, options.platform, report)
        layers = stack.enter_context(CachedLayers(reader, directory, work, options, shown, allowance))
        whole = layers.get_all([manifest.layers[number] for number in rest], [diff_ids[number] for number in rest])
        for number, layer in zip(rest, whole, strict=True):
            is_stargz = STARGZ_DIGEST in manifest.layers[number].annotations
            held[number] = layer._replace(kept=layer.kept._replace(is_stargz=is_stargz))
    return [held[number] for number in range(len(manifest.layers))]


def _write_image(
    task: ConversionRequest,
    path: str,
    devices: Sequence[Layer],
    primary: Layer,
    layers: Sequence[KeptLayer],
    unbound: str,
) -> None:
    """Write what the image became, as a manifest, after all that it names: from now on it is found.

    `unbound`: the digest of an index that it was made by, and that nothing vouches for.
    """
    descriptors = [_describe(layer, "device") for layer in devices] + [_describe(primary, "overlay-lower")]
    document = make_manifest(b"{}", descriptors, {})
    head: dict[str, Any] = {
        "version": VERSION,
        "name": task.name,
        "of": task.digest,
        "layers": [layer.digest for layer in layers],
        "stargz": [number for number, layer in enumerate(layers) if layer.is_stargz],
        "unbound": unbound,
        "digest": document.digest,
    }
    atomic_write(os.path.join(path, IMAGE), json.dumps(head).encode() + b"\n" + document.body, durable=True)


def _describe(layer: Layer, role: str) -> dict[str, Any]:
    if layer.map:
        return descriptor(MEDIA_TYPE, layer.digest, layer.size, {ROLE: role, MAP: layer.map})
    assert layer.index is not None  # noqa: S101 - all others have one
    where = {chunk_index.RANGE: f"{layer.index.offset}:{layer.index.end}", chunk_index.DIGEST: layer.index.digest}
    return descriptor(MEDIA_TYPE, layer.digest, layer.size, {ROLE: role, **where})


@contextlib.contextmanager
def _work_directory(path: str) -> Iterator[str]:
    """Make a directory to work in. Needs the lock, whose holder has it alone."""
    work = os.path.join(path, WORK)
    shutil.rmtree(work, ignore_errors=True)  # of one that was killed
    os.mkdir(work, mode=0o700)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)

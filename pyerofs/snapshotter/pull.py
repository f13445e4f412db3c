"""`pyerofs pull --containerd`: an image in containerd whose layers stay at their registry.

As containerd itself would have it after a lazy pull: index, manifest and config in its content store, each kept by
labels of what names it, and a snapshot for each layer. For what cannot pull lazily by itself: `ctr` before 2.0, and
nerdctl.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from ..config.options import ReadOptions
from ..context import Context
from ..erofs.compose import is_index
from ..errors import ImageError, MountError
from ..grpc.client import GrpcClient
from ..grpc.protobuf import BYTES, FIELD_MASK, INT, STRING, Map, Message
from ..grpc.status import Code, RpcError
from ..images.convert import read_blob
from ..oci.image_config import chain_ids, read_config
from ..oci.location import Location
from ..oci.manifest import Descriptor, Index, Manifest, parse, select
from ..oci.platforms import Platform
from ..oci.raw_manifest import RawManifest
from ..source.image_reader import ImageReader, open_reader
from . import protocol as said

_LEASE = Message(id=(1, STRING), labels=(3, Map()))
_LEASE_ID = Message(id=(1, STRING))
_WRITE = Message(
    action=(1, INT), ref=(2, STRING), total=(3, INT), expected=(4, STRING), offset=(5, INT), data=(6, BYTES),
    labels=(7, Map()),
)  # fmt: skip
_CONTENT = Message(digest=(1, STRING), size=(2, INT), labels=(5, Map()))
_UPDATE_CONTENT = Message(info=(1, _CONTENT), update_mask=(2, FIELD_MASK))
_DESCRIPTOR = Message(media_type=(1, STRING), digest=(2, STRING), size=(3, INT))
_IMAGE = Message(image=(1, Message(name=(1, STRING), labels=(2, Map()), target=(3, _DESCRIPTOR))))
_COMMIT = 2  # the action that writes and commits
_HOUR = 3600.0  # seconds after which containerd drops a lease that a killed pull has left
_REF = "containerd.io/gc.ref."


class _Content(NamedTuple):
    """A blob for containerd's content store. `labels` keep what it names."""

    digest: str
    data: bytes
    labels: dict[str, str]


def pull(
    image: str,
    address: str,
    namespace: str,
    snapshotter: str,
    options: ReadOptions,
    report: Callable[[str], None],
    context: Context,
) -> str:
    """Make an image one of containerd's, without its layers; return its digest.

    `address`: containerd's socket; `snapshotter`: what pyerofs is called there; `report` gets a line for what was done.
    Raises PyerofsError, and then containerd removes what was written.
    """
    location = Location("registry", image)
    name = str(location.reference)
    with contextlib.closing(open_reader(location, options, context)) as origin:
        root = origin.root()
        document, manifest = _choose(origin, root, options.platform or Platform.host())
        if manifest.config is None:
            raise ImageError(f"{name}: the image has no config")
        config = read_blob(origin, manifest.config)
    layers = [layer for layer in manifest.layers if not is_index(layer)]
    _, diff_ids = read_config(config, len(layers))
    chains = chain_ids(diff_ids)
    source = {f"containerd.io/distribution.source.{location.reference.registry}": location.reference.repository}
    kept = {f"{_REF}content.l.{number}": layer.digest for number, layer in enumerate(layers)}
    contents = [
        _Content(manifest.config.digest, config, {**source, f"{_REF}snapshot.{snapshotter}": chains[-1]}),
        _Content(document.digest, document.body, {**source, **kept, f"{_REF}content.config": manifest.config.digest}),
    ]
    if document.digest != root.digest:
        contents.append(_Content(root.digest, root.body, {**source, f"{_REF}content.m.0": document.digest}))
    with contextlib.closing(_Containerd(address, namespace)) as containerd, containerd.leased():
        labels = {said.IMAGE: name, said.MANIFEST: document.digest}
        for number, (layer, chain) in enumerate(zip(layers, chains, strict=True)):
            parent = chains[number - 1] if number else ""
            if not containerd.prepare(snapshotter, chain, parent, {**labels, said.LAYER: layer.digest}):
                raise ImageError(
                    f"{name}: layer {number} cannot be mounted lazily (the snapshotter's log says why): pull the image "
                    f"with `ctr -n {namespace} images pull --snapshotter {snapshotter} {name}`"
                )
        for content in contents:
            containerd.write(content)
        containerd.name(name, root)
    report(f"{name}: {len(layers)} layers, none of them fetched")
    return root.digest


def _choose(origin: ImageReader, root: RawManifest, platform: Platform) -> tuple[RawManifest, Manifest]:
    """Return the manifest that containerd would choose: of an index the ordinary one, else the EROFS one."""
    document, parsed = root, parse(root.body, root.media_type)
    if isinstance(parsed, Index):
        ordinary = [entry for entry in parsed.manifests if not (entry.platform and entry.platform.os_features)]
        try:
            entry: Descriptor = select(Index(parsed.media_type, tuple(ordinary)), platform)
        except ImageError:
            entry = select(parsed, platform)
        document = origin.document(entry)
        parsed = parse(document.body, document.media_type)
    if not isinstance(parsed, Manifest) or not parsed.layers:
        raise ImageError(f"{origin.name}: there is no image with layers")
    return document, parsed


class _Containerd:
    """What of containerd is needed. For one thread."""

    def __init__(self, address: str, namespace: str) -> None:
        self._address = address
        self._metadata: Mapping[str, str] = {"containerd-namespace": namespace}
        self._client = GrpcClient(address, self._metadata)

    def close(self) -> None:
        self._client.close()

    @contextlib.contextmanager
    def leased(self) -> Iterator[None]:
        """Keep what is made meanwhile from containerd's garbage collection."""
        lease = f"pyerofs-pull-{os.getpid()}-{time.time_ns():x}"
        expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + _HOUR))
        leases = "/containerd.services.leases.v1.Leases/"
        request = {"id": lease, "labels": {"containerd.io/gc.expire": expires}}
        self._client.call(f"{leases}Create", _LEASE.encode(request))
        self._client.close()
        self._client = GrpcClient(self._address, {**self._metadata, "containerd-lease": lease})
        try:
            yield
        finally:
            with contextlib.suppress(RpcError):
                self._client.call(f"{leases}Delete", _LEASE_ID.encode({"id": lease}))

    def prepare(self, snapshotter: str, chain: str, parent: str, labels: Mapping[str, str]) -> bool:
        """Have a layer's snapshot made; return whether that is done without the layer."""
        key = f"pyerofs-pull-{os.getpid()}-{time.time_ns():x} {chain}"
        request = {
            "snapshotter": snapshotter,
            "key": key,
            "parent": parent,
            "labels": {**labels, said.TARGET: chain},
        }
        try:
            self._client.call(f"{said.SERVICE}Prepare", said.PREPARE.encode(request))
        except RpcError as error:
            if error.code is Code.ALREADY_EXISTS:
                return True
            raise MountError(f"containerd's snapshotter {snapshotter}: {error}") from None
        self._client.call(f"{said.SERVICE}Remove", said.KEY.encode({"snapshotter": snapshotter, "key": key}))
        return False

    def write(self, content: _Content) -> None:
        """Put a blob into the content store, or its labels to the one that is there."""
        size = len(content.data)
        request = {
            "action": _COMMIT,
            "ref": f"pyerofs-{content.digest}",
            "total": size,
            "expected": content.digest,
            "data": content.data,
            "labels": content.labels,
        }
        service = "/containerd.services.content.v1.Content/"
        try:
            list(self._client.stream(f"{service}Write", _WRITE.encode(request)))
        except RpcError as error:
            if error.code is not Code.ALREADY_EXISTS:
                raise
            update = {
                "info": {"digest": content.digest, "labels": content.labels},
                "update_mask": {"paths": [f"labels.{name}" for name in content.labels]},
            }
            self._client.call(f"{service}Update", _UPDATE_CONTENT.encode(update))

    def name(self, name: str, root: RawManifest) -> None:
        """Give the image its name, in place of another one that has it."""
        target = {"media_type": root.media_type, "digest": root.digest, "size": len(root.body)}
        image = _IMAGE.encode({"image": {"name": name, "target": target}})
        service = "/containerd.services.images.v1.Images/"
        try:
            self._client.call(f"{service}Create", image)
        except RpcError as error:
            if error.code is not Code.ALREADY_EXISTS:
                raise
            self._client.call(f"{service}Update", image)

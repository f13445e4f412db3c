"""How an image is had: lazily, and from which manifest, or as containerd unpacks it. Decided once for each image.

Substitution: an image of tar layers whose index has the same image of EROFS layers is mounted from that one. Only an
index is believed, since it lies under what was resolved; only layers that are verified piece by piece are; and only
those that are, one by one, what the tar layers are, since other images stand on them too.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..cache.manifests import ManifestCache
from ..cache.paths import chosen_directory
from ..config import file as config_file
from ..config.options import parse_mount_options
from ..context import Context
from ..erofs.compose import is_index, role_of
from ..erofs.layer import CONTENT, describe
from ..erofs.native import is_compressed, is_native
from ..errors import ImageError, PyerofsError, UsageError, unexpected
from ..images.layer import SOURCE_CHAIN
from ..oci.image_config import chain_ids
from ..oci.location import Location
from ..oci.manifest import Descriptor, Index, Manifest, is_attestation
from ..oci.platforms import Platform
from ..source.connect import connect
from ..source.resolve import get_document

_KEPT = 256  # decisions
_AGAIN = 15.0  # seconds after which a registry that did not answer is asked again
_EXCHANGE = 3.0  # seconds for one document
_FEATURE = "erofs"


class Lazy(NamedTuple):
    """An image that is mounted.

    `source`: its manifest as REPOSITORY@DIGEST; `layers`: for each of the pulled image's layers, its digest and how
    many of the manifest's make up all to it; `chains`: their ChainIDs, "" where that is not said; `total` of the
    manifest's; `options` for the mount; `why`: for the log.
    """

    source: str
    layers: tuple[tuple[str, int], ...]
    chains: tuple[str, ...]
    total: int
    options: str
    why: str


class Eager(NamedTuple):
    """An image that containerd is to unpack. `temporary`: the registry may say more later."""

    why: str
    temporary: bool = False


Decision = Lazy | Eager


class Decisions:
    """`options`: the -o strings of every mount; `log` gets a line for each decision. Any thread.

    `only`: prefixes of names, REGISTRY[/PATH], of those images that may be lazy; none: all may.
    """

    def __init__(self, options: Sequence[str], log: Callable[[str], None], only: Sequence[str] = ()) -> None:
        self._options = list(options)
        self._only = tuple(prefix.strip("/") for prefix in only)
        self._log = log
        self._lock = threading.Lock()
        self._made: OrderedDict[tuple[str, str], _Pending] = OrderedDict()

    def decide(self, image: str, manifest: str, patience: float) -> Decision:
        """Return how the image with this name and manifest digest is had, within `patience` seconds. Raises nothing."""
        key = (image, manifest)
        with self._lock:
            pending = self._made.get(key)
            if pending is None or pending.is_old():
                pending = self._made[key] = _Pending()
                threading.Thread(target=self._run, args=(image, manifest, pending), daemon=True).start()
            self._made.move_to_end(key)
            while len(self._made) > _KEPT:
                self._made.popitem(last=False)
        if not pending.done.wait(patience):
            self._log(f"{image}: ordinary for now: its registry has not answered within {patience:g} s")
            return Eager("its registry has not answered in time", temporary=True)
        return pending.decision

    def _run(self, image: str, manifest: str, pending: _Pending) -> None:
        try:
            pending.decision = self._decide(image, manifest)
        except PyerofsError as error:
            pending.decision = Eager(str(error), temporary=getattr(error, "temporary", False))
        except Exception as error:
            pending.decision = Eager(str(unexpected(error)))
        pending.at = time.monotonic()
        found = pending.decision
        if isinstance(found, Lazy):
            self._log(f"{image}: lazy, from {found.source.partition('@')[2]}: {found.why}")
        else:
            self._log(f"{image}: ordinary: {found.why}")
        pending.done.set()

    def _decide(self, image: str, manifest: str) -> Decision:
        reference = Location("registry", image).reference
        name = f"{reference.registry}/{reference.repository}/"
        if self._only and not any(name.startswith(f"{prefix}/") for prefix in self._only):
            return Eager("it is none of those that may be lazy (--lazy)")
        return _decide(image, manifest, self._options, self._log)


class _Pending:
    def __init__(self) -> None:
        self.done = threading.Event()
        self.decision: Decision = Eager("")
        self.at = 0.0

    def is_old(self) -> bool:
        found = self.decision
        return (
            self.done.is_set() and isinstance(found, Eager) and found.temporary and time.monotonic() > self.at + _AGAIN
        )


def _decide(image: str, digest: str, options: Sequence[str], log: Callable[[str], None]) -> Decision:
    """Ask the registry. Raises PyerofsError."""
    location = Location("registry", image)
    reference = location.reference
    defaults = config_file.load().defaults(location)
    chosen = replace(parse_mount_options(options, "erofs", defaults).oci, timeout=_EXCHANGE)
    registry, transport = connect(reference, chosen, Context(log))
    kept = (ManifestCache(chosen_directory(chosen), log), registry.giver)

    def get(what: str) -> tuple[str, Manifest | Index]:
        return get_document(registry, what, Context(log), _EXCHANGE, kept)

    try:
        _, pulled = get(digest)
        if not isinstance(pulled, Manifest):
            raise ImageError(f"{digest} is no manifest")
        name = f"{reference.registry}/{reference.repository}"
        if _is_native(pulled):
            return native(f"{name}@{digest}", pulled)
        if reference.manifest_reference == digest:
            return Eager("it was pulled by its manifest's digest, without an index")
        root, index = get(reference.manifest_reference)
        if not isinstance(index, Index):
            return Eager("it has no index in which an EROFS image could be")
        sibling = find_sibling(index, digest)
        if isinstance(sibling, str):
            return Eager(sibling)
        _, found = get(sibling.digest)
        if not isinstance(found, Manifest):
            return Eager("the EROFS image in its index is no manifest")
        return substitute(f"{name}@{sibling.digest}", pulled, found, root)
    finally:
        transport.close()


def _is_native(manifest: Manifest) -> bool:
    layers = [layer for layer in manifest.layers if not is_index(layer)]
    return bool(layers) and any(is_native(layer.media_type) for layer in layers)


def native(source: str, manifest: Manifest) -> Decision:
    """Decide of an image whose own layers are EROFS. Raises ImageError."""
    found: list[tuple[str, int]] = []
    for number, layer in enumerate(manifest.layers):
        if is_index(layer) and found:
            found[-1] = (found[-1][0], number + 1)
        else:
            role_of(layer)  # what is malformed is said at the pull
            found.append((layer.digest, number + 1))
    return Lazy(source, tuple(found), _own_chains(manifest), len(manifest.layers), "", "its layers are EROFS")


def _own_chains(manifest: Manifest) -> tuple[str, ...]:
    """Return the ChainIDs that layers of EROFS must have, as far as their digests tell; "" from there on.

    Else an image could give itself out for the layers of another one, which would then be mounted from it.
    """
    layers = [layer for layer in manifest.layers if not is_index(layer)]
    contents = [_content_of(layer) for layer in layers]
    known = contents.index("") if "" in contents else len(contents)
    return (*chain_ids(contents[:known]), *[""] * (len(contents) - known))


def _content_of(layer: Descriptor) -> str:
    """Return the digest of what a layer decompresses to; "" where it is not said."""
    return layer.annotations.get(CONTENT, "") if is_compressed(layer.media_type) else layer.digest


def find_sibling(index: Index, digest: str) -> Descriptor | str:
    """Return the EROFS image beside the manifest with this digest, or why there is none."""
    entry = next((entry for entry in index.manifests if entry.digest == digest), None)
    if entry is None:
        return "its name leads to another index by now"
    mine = entry.platform
    if mine is None:
        return "its index does not say for which platform it is"
    for other in index.manifests:
        where = other.platform
        if where is None or is_attestation(other) or _FEATURE not in where.os_features:
            continue
        if Platform(where.os, where.architecture, where.variant) == Platform(mine.os, mine.architecture, mine.variant):
            return other
    return "its index has no EROFS image for its platform"


def substitute(source: str, pulled: Manifest, found: Manifest, index: str) -> Decision:
    """Decide of an image in whose index there is an EROFS image. Raises ImageError."""
    positions = [number for number, layer in enumerate(found.layers) if not is_index(layer)]
    if len(positions) != len(pulled.layers):
        return Eager(f"the EROFS image in its index has {len(positions)} layers for its {len(pulled.layers)}")
    if any(
        role_of(found.layers[number]) != "lower" or not is_native(found.layers[number].media_type)
        for number in positions
    ):
        return Eager("the EROFS image in its index has layers that are no filesystems")
    bare = next((number for number in positions if describe(found, number).index is None), None)
    if bare is not None:
        return Eager(f"layer {bare} of the EROFS image in its index has no chunk index to verify it by")
    ends = [*positions[1:], len(found.layers)]
    layers = tuple((layer.digest, end) for layer, end in zip(pulled.layers, ends, strict=True))
    chains = tuple(found.layers[number].annotations.get(SOURCE_CHAIN, "") for number in positions)
    why = f"the EROFS image in its index {index}"
    return Lazy(source, layers, chains, len(found.layers), "oci.verify=require", why)


def check_name(image: str) -> None:
    """Raise UsageError for what is no image's name."""
    if len(image) > 4096:
        raise UsageError("the image's name is too long")
    Location("registry", image)

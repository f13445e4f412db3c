"""Sources: where a blob's bytes come from, with its exact size and its identity."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from .compose import Part, compose
from .errors import ImageError, RegistryError, SystemFailure, UsageError
from .imagesource import open_source
from .layer import Layer, Storage, describe
from .manifest import MEDIA_TYPES, Index, Manifest, choose_layer, digest_as, native_layers, parse, select
from .options import OCIOptions
from .platforms import Platform
from .reference import Reference
from .retry import patiently

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .hosts import HostConfig, Roots
    from .localblob import Blobs, Connections
    from .manifests import Manifests
    from .registry import ManifestAnswer, Registry
    from .transport import Transport

    # Opens a source; it is given where a line goes for what a person may want to know.
    Opener = Callable[[Callable[[str], None]], "Source"]

DEFAULT_TIMEOUT = OCIOptions().timeout
INDEX_DEPTH = 4  # an index may name indexes; nobody nests them deeper for a good reason
_FROM_MIRRORS = frozenset(("pull", "resolve"))  # who names a mirror on the command line trusts it with tags too
_BLKGETSIZE64 = 0x80081272  # linux/fs.h


class Source(Protocol):
    """Where a blob's bytes come from.

    `size` in bytes; `digest`: the layer's; `name` and `layer` for messages. `origin`: the layer as it can be opened
    again without its manifest; `storage`: how its bytes are kept. `connections`: it may share them with others.
    """

    size: int
    digest: str
    name: str
    layer: int
    connections: Connections

    @property
    def origin(self) -> Layer: ...

    @property
    def storage(self) -> Storage: ...

    def read_range(
        self,
        offset: int,
        length: int,
        sink: Callable[[int, bytes], bool],
        *,
        whole: Callable[[], None],
        cancel: Callable[[], bool],
    ) -> None:
        """One attempt at bytes [offset, offset + length), each piece given to sink(offset, piece) in order.

        `whole` is called before the first piece if it is the whole blob that comes, from 0 on. A sink that returns
        False wants no more. Raises RegistryError; everything that sink has been given before is good, unless it is a
        SpoiledError, with which all of it is not. Any thread.
        """

    def content(self) -> str | None:
        """Return the digest that the whole must have, as far as that is known. Any thread."""

    def complete(self) -> None:
        """All of it is in the cache, so that what is kept for reading may go. It may be read again. Any thread."""

    def close(self) -> None: ...


class Image(NamedTuple):
    """A reference, resolved: `manifest` is `digest`'s.

    `root` and `root_digest`: what the reference itself names, which is that manifest or an index on the way to it.
    `name` is for messages.
    """

    name: str
    digest: str
    manifest: Manifest
    root_digest: str
    root: Manifest | Index


class LocalSource:
    """An image file or a block device. Owns `fd` until close(). `identity` tells it from a later one at its path."""

    def __init__(self, path: str):
        self.name = path
        self.digest = ""
        self.layer = -1
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError as e:
            raise UsageError(f"cannot open {path}: {e.strerror}") from None
        try:
            self.size = self._size(path)  # no FIFO then, nor anything else that one waits for
            os.set_blocking(self.fd, True)
        except BaseException:
            self.close()
            raise

    @property
    def identity(self) -> str:
        found = os.fstat(self.fd)
        if stat.S_ISBLK(found.st_mode):
            return f"{found.st_rdev} {self.size}"
        return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"

    def _size(self, path: str) -> int:
        found = os.fstat(self.fd)
        if stat.S_ISBLK(found.st_mode):
            try:
                answer = fcntl.ioctl(self.fd, _BLKGETSIZE64, bytes(8))
            except OSError as e:
                raise SystemFailure(f"cannot read the size of {path}: {e.strerror}") from None
            size = int(struct.unpack("=Q", answer)[0])
        elif stat.S_ISREG(found.st_mode):
            size = found.st_size
        else:
            raise UsageError(f"{path} is neither a regular file nor a block device")
        if not size:
            raise ImageError(f"{path} is empty")
        return size

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _never() -> bool:
    return False


def _no(_: RegistryError) -> bool:
    return False


def _ignore(_: str) -> None:
    pass


def connect(
    text: str, options: OCIOptions, *, trace: Callable[[str], None] | None = None, scopes: tuple[str, ...] = ()
) -> tuple[Reference, Registry, Transport]:
    """Return the registry of a reference; no request is made. The caller closes the transport. Raises UsageError.

    `scopes`: what its tokens must be good for, beside what it asks for.
    """
    from .credentials import from_options
    from .proxy import choose
    from .registry import Registry
    from .transport import CONNECT_TIMEOUT, STALL_SECONDS, Transport

    reference = Reference.parse(text)
    credentials = from_options(options.username, options.password, options.password_file)
    config = host_config(reference.registry, options)
    transport = Transport(
        trace=trace,
        proxies=choose(options.proxy.reveal() if options.proxy else None, os.environ),
        # Time must be left to try it another way before a read's own time is up.
        connect_timeout=min(CONNECT_TIMEOUT, options.timeout / 3),
        stall_seconds=min(STALL_SECONDS, options.timeout / 4),
    )
    try:
        registry = Registry(
            reference.host,
            reference.repository,
            transport,
            namespace=reference.registry,
            insecure=options.insecure,
            credentials=credentials,
            config=config,
            scopes=scopes,
        )
    except BaseException:
        transport.close()
        raise
    return reference, registry, transport


def host_config(registry: str, options: OCIOptions, roots: Roots | None = None) -> HostConfig:
    """Return this machine's configuration of a registry's hosts, with what the options add. Raises UsageError."""
    from .hosts import Host, HostConfig, certificates, check_readable, default_roots, load, parse_api_url

    roots = roots or default_roots(os.environ, os.getuid())
    config = load(registry, roots)
    named = []
    for text in options.mirrors:
        url = parse_api_url(text)
        found = certificates(url.authority, roots)
        named.append(Host(url, _FROM_MIRRORS, found.ca, found.client))
    ca = (check_readable(options.ca, "oci.ca"),) if options.ca else ()
    places = [place._replace(ca=(*place.ca, *ca)) for place in (*named, *config.mirrors, config.server)]
    return HostConfig(tuple(places[:-1]), places[-1])


def open_image(
    text: str,
    options: OCIOptions,
    *,
    trace: Callable[[str], None] | None = None,
    cancel: Callable[[], bool] = _never,
    kept: Manifests | None = None,
    log: Callable[[str], None] = _ignore,
) -> Source:
    """Resolve a reference to the layer that the options name. Raises UsageError, RegistryError, ImageError.

    `trace` gets a line for each exchange with the registry, then and later, `log` one for the user. `kept`: manifests
    of earlier times, for when the registry cannot be reached.
    """

    def choose(manifest: Manifest) -> tuple[Part, ...]:
        return (Part(*choose_layer(manifest, options.layer, options.blob)),)

    [(_, open_)] = find_parts(text, options, choose, trace=trace, cancel=cancel, kept=kept)
    return open_(log)


def find_parts(
    text: str,
    options: OCIOptions,
    choose: Callable[[Manifest], tuple[Part, ...]] | None = None,
    *,
    trace: Callable[[str], None] | None = None,
    cancel: Callable[[], bool] = _never,
    kept: Manifests | None = None,
) -> list[tuple[Part, Opener]]:
    """Resolve a reference to every part of what the options name, a layer or the whole image, each with its opener.

    None is opened yet: its function does that, from any thread, and raises RegistryError, ImageError, SystemFailure.
    They share their connections; the first that is closed closes those that are idle, and the others make new ones.
    """
    reference, registry, transport = connect(text, options, trace=trace)
    try:
        image = resolve(registry, reference, options.platform or Platform.host(), cancel, options.timeout, kept)
        return parts_of(image, registry, transport, options, choose, cancel=cancel)
    except BaseException:
        transport.close()
        raise


def parts_of(
    image: Image,
    blobs: Blobs,
    connections: Connections,
    options: OCIOptions,
    choose: Callable[[Manifest], tuple[Part, ...]] | None = None,
    *,
    cancel: Callable[[], bool] = _never,
    converted: bool = False,
) -> list[tuple[Part, Opener]]:
    """Return the parts as find_parts() does, of an image whose blobs `blobs` has.

    Raises ImageError, OrdinaryImage; the caller then still owns the connections.
    """
    manifest = image.manifest
    if not native_layers(manifest) and options.layer is None and options.blob is None:
        from .ordinary import OrdinaryImage

        raise OrdinaryImage(image.name, image.digest, manifest)
    try:
        parts = choose(manifest) if choose else compose(manifest, options.layer, options.blob)
        layers = [describe(manifest, part.layer, use_index=options.verify != "none") for part in parts]
    except ImageError as e:
        hint = "; an ordinary image is mounted whole, without oci.layer and oci.blob"
        raise ImageError(f"{image.name}: {e}{'' if native_layers(manifest) else hint}") from None

    def opener(part: Part, layer: Layer) -> Opener:
        def open_(log: Callable[[str], None]) -> Source:
            try:
                return open_source(image.name, layer, blobs, connections, options, cancel=cancel, log=log)
            except BaseException as e:
                connections.close()
                if isinstance(e, ImageError) and part.role == "device" and layer.compressed and not layer.index:
                    raise ImageError(f"{e}; a compressed device needs a chunk index, which tells its size") from None
                raise

        return open_

    return [
        (part, opener(part, replace(layer, converted=converted))) for part, layer in zip(parts, layers, strict=True)
    ]


def known_layers(
    text: str,
    layers: Sequence[tuple[Layer, int]],
    options: OCIOptions,
    *,
    trace: Callable[[str], None] | None = None,
) -> list[Opener]:
    """Return openers of layers that have been opened before, each with the number of bytes that its source had.

    What is in the cache is not asked for. Raises UsageError.
    """
    reference, registry, transport = connect(text, options, trace=trace)
    return reopened(str(reference), layers, registry, transport, options)


def reopened(
    name: str, layers: Sequence[tuple[Layer, int]], blobs: Blobs, connections: Connections, options: OCIOptions
) -> list[Opener]:
    """As known_layers(), of an image whose blobs `blobs` has."""

    def opener(layer: Layer, size: int) -> Opener:
        def open_(log: Callable[[str], None]) -> Source:
            try:
                source = open_source(name, layer, blobs, connections, options, size=size, log=log)
                if source.size != size:
                    raise ImageError(f"{name}: it has {source.size} bytes now instead of {size}: mount it again")
                return source
            except BaseException:
                connections.close()
                raise

        return open_

    return [opener(layer, size) for layer, size in layers]


def get_document(
    registry: Registry,
    what: str,
    cancel: Callable[[], bool] = _never,
    timeout: float = DEFAULT_TIMEOUT,
    kept: tuple[Manifests, str] | None = None,
) -> tuple[str, Manifest | Index]:
    """Return the manifest or index with this tag or digest, and its digest; it may take `timeout` seconds in all.

    `kept`: manifests of earlier times, and the image's name among them. Raises RegistryError, ImageError.
    """

    def ask(enough: Callable[[RegistryError], bool] = _no) -> ManifestAnswer:
        return get_answer(registry, what, cancel, timeout, enough)

    if kept is not None:
        found = kept[0].get(kept[1], what, ask)
        return found.digest, parse(found.body, found.media_type)
    answer = ask()
    return digest_as(what, answer.body), parse(answer.body, answer.media_type)


def get_answer(
    registry: Registry,
    what: str,
    cancel: Callable[[], bool] = _never,
    timeout: float = DEFAULT_TIMEOUT,
    enough: Callable[[RegistryError], bool] = _no,
) -> ManifestAnswer:
    """Return the manifest or index as it was sent, and the digest verified where `what` is one.

    After a failure that is `enough` there is no other try. Raises RegistryError, ImageError.
    """
    return patiently(lambda left: registry.get_manifest(what, MEDIA_TYPES, cancel, left), cancel, timeout, enough)


def resolve(
    registry: Registry,
    reference: Reference,
    platform: Platform,
    cancel: Callable[[], bool] = _never,
    timeout: float = DEFAULT_TIMEOUT,
    kept: Manifests | None = None,
) -> Image:
    """Follows a reference to the manifest for the platform, each document within `timeout` seconds.

    Raises RegistryError, ImageError.
    """
    where = (kept, registry.giver) if kept else None

    def get(what: str) -> tuple[str, Manifest | Index]:
        return get_document(registry, what, cancel, timeout, where)

    try:
        return follow(str(reference), get(reference.manifest_reference), get, platform)
    except ImageError as e:
        raise ImageError(f"{reference}: {e}") from None


def follow(
    name: str,
    root: tuple[str, Manifest | Index],
    get: Callable[[str], tuple[str, Manifest | Index]],
    platform: Platform,
) -> Image:
    """From a manifest or index (and its digest) to the manifest for the platform; `get` gives others by their digests.

    Raises ImageError, and what `get` raises.
    """
    digest, document = root
    for _ in range(INDEX_DEPTH - 1):
        if isinstance(document, Index):
            digest, document = get(select(document, platform).digest)
    if isinstance(document, Manifest):
        return Image(name, digest, document, *root)
    raise ImageError(f"its indexes are nested more than {INDEX_DEPTH} deep")

"""A part of a mount while it is served: one blob with all that carries it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TypeVar

from ..errors import ImageError
from ..export.server import Server
from ..source.local import LocalSource
from .attach.kinds import attach
from .record import LayerRecord

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from ..config.options import MountOptions
    from ..erofs.compose import PlannedLayer, Role
    from ..erofs.dmverity import HashTree, Table
    from ..erofs.superblock import Superblock
    from ..export.base import Export
    from .attach.base import Attachment

AT_ONCE = 8  # parts that are opened at the same time: the registry answers each a round trip later

T = TypeVar("T")


class ServedLayer:
    """One blob of a mount, served.

    Owns its export, server and, from attach() or adopt() on, attachment; close() ends the first two, after the
    attachment has been let go. `devices`: the numbers of the layers that its mount needs; `tree`: the dm-verity tree
    that the kernel verifies it by; `debug` gets lines for those who look for a fault. For one thread at a time.
    """

    attachment: Attachment
    id = ""  # the device's backend identifier, once it is attached

    def __init__(
        self,
        export: Export,
        log: Callable[[str], None],
        role: Role = "lower",
        devices: Sequence[int] = (),
        tree: HashTree | None = None,
        debug: Callable[[str], None] = lambda _: None,
    ):
        self.export = export
        self.role = role
        self.devices = devices
        self.tree = tree
        self.server = Server(export, log)
        self._log = log
        self._debug = debug
        self._table: Table | None = None
        self._device = ""  # what the blob is attached as
        self._verity = ""  # the device over that

    @property
    def layer(self) -> int:
        return self.export.source.layer

    def check(self, options: MountOptions) -> None:
        """Whether the blob is what its role needs, before anything is attached. Raises ImageError, RegistryError."""
        if self.tree:
            self._table = self._check_tree(self.tree)
        if self.role == "device":
            return
        superblock = self.export.superblock()
        if self.tree:
            self._check_covered(superblock, self.tree)
        wanted = superblock.extra_devices
        if self.devices and wanted != len(self.devices):
            raise ImageError(
                f"layer {self.layer} needs {wanted} more devices, but the image has {len(self.devices)} for it "
                f"(layers {', '.join(map(str, self.devices))})"
            )
        if wanted and not self.devices and "device=" not in options.data:
            self._log(f"the image needs {wanted} more devices: give each with -o device=")

    def _check_tree(self, tree: HashTree) -> Table:
        from ..erofs import dmverity
        from ..kernel.dmverity import check_available

        check_available()
        try:
            dmverity.check_within(tree, self.export.size)
            head = bytearray(dmverity.HEAD)
            self.export.read_into(memoryview(head), tree.offset)
            return dmverity.table(tree, bytes(head), self.export.size)
        except ImageError as e:
            raise ImageError(f"{self.export.source.name}: {e}") from None

    def _check_covered(self, superblock: Superblock, tree: HashTree) -> None:
        if superblock.size > tree.offset:
            raise ImageError(
                f"{self.export.source.name}: the EROFS image has {superblock.size} bytes, "
                f"and its dm-verity tree covers {tree.offset} of them"
            )
        if superblock.block_size < tree.block:
            raise ImageError(
                f"{self.export.source.name}: the EROFS image has blocks of {superblock.block_size} bytes, "
                f"and its dm-verity tree of {tree.block}: the kernel cannot mount that"
            )

    def attach(self, driver: str, identifier: str, options: MountOptions) -> None:
        """Errors as those of the attachments."""
        self.attachment = attach(driver, self.server, self.export.size, identifier, options, self._said)
        self.id = identifier
        self._device = self.attachment.path
        if self._table:
            from .attach.dmverity import VerityAttachment

            self.attachment = VerityAttachment.attach(self.attachment, self._table, identifier, options.oci.timeout)
            self._verity = self.attachment.path

    def _said(self, line: str) -> None:
        self._debug(f"nbdfuse: {line}")

    def adopt(self, was: LayerRecord, sockets: Sequence[socket.socket], connections: int) -> None:
        """Goes on with a device that another daemon has attached; as NBDAttachment.adopt()."""
        self.id = was.id
        from .attach.nbd import NBDAttachment

        self.attachment = NBDAttachment.adopt(self.server, was.device, was.size, was.id, sockets, connections)
        self._device, self._verity = was.device, was.verity
        if was.verity:
            from ..kernel.dmverity import VerityDevice
            from .attach.dmverity import VerityAttachment

            self.attachment = VerityAttachment(self.attachment, VerityDevice.adopt(was.id, was.verity))

    def record(self) -> LayerRecord:
        source = self.export.source
        return LayerRecord(
            id=self.id,
            device=self._device,
            verity=self._verity,
            size=self.export.size,
            digest=source.digest,
            layer=source.layer,
            role=self.role,
            how=self.attachment.how,
            origin={} if isinstance(source, LocalSource) else source.origin.as_dict(),
        )

    def close(self) -> None:
        self.server.close()
        self.export.close()


def choose_tree(
    chosen: PlannedLayer, options: MountOptions, source: str, log: Callable[[str], None]
) -> HashTree | None:
    """Return the tree by which the kernel is to verify a layer of the image `source`. Raises ImageError."""
    if options.verity == "none":
        return None
    from ..erofs.dmverity import choose

    return choose(chosen.descriptor.annotations, options.verity, f"{source}: layer {chosen.layer}", log)


def for_each(items: Sequence[T], act: Callable[[T], None]) -> None:
    """act(item) for each, several at a time. After an error no other is begun, and it is raised when all have ended."""
    if len(items) < 2:
        for item in items:
            act(item)
        return
    left = list(reversed(items))
    lock = threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        while True:
            with lock:
                if errors or not left:
                    return
                item = left.pop()
            try:
                act(item)
            except BaseException as e:
                with lock:
                    errors.append(e)

    threads = [threading.Thread(target=work, name="pyerofs-part", daemon=True) for _ in range(min(AT_ONCE, len(items)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]

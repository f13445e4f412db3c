"""An ordinary image that runs anywhere: busybox, users with names, two layers that change one another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.images import OCI_CONFIG, OCI_MANIFEST, digest_of
from tests.support.needs import need
from tests.support.ordinary import GZIP, PACK, Layout, Member, directory, file, symlink
from tests.support.tarballs import archive

COMMANDS = ("sh", "cat", "id", "ls", "sleep", "md5sum", "env", "pwd", "touch", "wc")
PASSWD = b"root:x:0:0::/root:/bin/sh\nweb:x:1234:1235::/srv:/bin/sh\n"
GROUP = b"root:x:0:\nweb:x:1235:\nextra:x:99:someone,web\n"
BIG = b"1234567\n" * (1 << 18)  # 2 MiB, in the second layer


def members(motd: bytes = b"above") -> tuple[list[Member], list[Member]]:
    busybox = Path(need("busybox", "busybox-static")).read_bytes()
    return (
        [
            directory("bin"), directory("usr"), file("bin/busybox", busybox, mode=0o755),
            *(symlink(f"bin/{name}", "busybox") for name in COMMANDS),
            directory("etc"), file("etc/passwd", PASSWD), file("etc/group", GROUP), file("etc/motd", b"below"),
            directory("root"), file("gone", b"x"),
        ],
        [file("etc/motd", motd), directory("srv", uid=1234), file(".wh.gone"), file("big", BIG)],
    )  # fmt: skip


def busy_image(layout: Layout, tag: str, *, motd: bytes = b"above", **settings: object) -> str:
    """Put the image into a layout; its name. `settings`: what its config says of containers."""
    layers = [archive(*each) for each in members(motd)]
    blobs = [PACK[GZIP](layer) for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": "2024-05-06T07:08:09.123456789Z",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"], **settings},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        "history": [{"created_by": f"step {number}"} for number in range(len(layers))],
    }
    manifest: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": layout.add_json(config, OCI_CONFIG),
        "layers": [{"mediaType": GZIP, "digest": layout.add(blob), "size": len(blob)} for blob in blobs],
    }
    return layout.tag(layout.add_json(manifest, OCI_MANIFEST), tag)

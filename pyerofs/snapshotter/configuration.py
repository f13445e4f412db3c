"""What containerd's config.toml needs to have for us, by containerd's version."""

from __future__ import annotations

import json
import re

from ..errors import UsageError
from ..oci.platforms import Platform

OLDEST = (1, 6)
_FEATURE_SINCE = (2, 3)  # from which on os.features is a part of a platform

_V2 = """\
version = 2

[proxy_plugins.pyerofs]
  type = "snapshot"
  address = {address}
  [proxy_plugins.pyerofs.exports]
    root = {root}  # read by 1.7.16 and newer: for kubelet's limits and garbage collection

[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "pyerofs"
  disable_snapshot_annotations = false
"""
_V3 = """\
version = 3

[proxy_plugins.pyerofs]
  type = "snapshot"
  address = {address}
  platform = {platform}
  [proxy_plugins.pyerofs.exports]
    root = {root}
    enable_remote_snapshot_annotations = "true"

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "pyerofs"
  disable_snapshot_annotations = false

# For `ctr images pull`. It must be the first one that fits this platform.
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = {platform}
  snapshotter = "pyerofs"
  differ = "walking"
"""


def render(version: str, root: str, address: str) -> str:
    """Return the lines to be merged into config.toml. Raises UsageError for what is no version, or too old a one."""
    numbers = parse_version(version)
    where = Platform.host()
    system = "linux(+erofs)" if numbers >= _FEATURE_SINCE else "linux"
    platform = "/".join(filter(None, (system, where.architecture, where.variant)))
    text = _V2 if numbers < (2, 0) else _V3
    return text.format(address=_quoted(address), root=_quoted(root), platform=_quoted(platform)).rstrip("\n")


def parse_version(text: str) -> tuple[int, int]:
    """Return the first two numbers of a version such as v1.7.24 or 2.3+. Raises UsageError."""
    found = re.match(r"v?([0-9]{1,4})\.([0-9]{1,4})(?![0-9])", text)
    if not found:
        raise UsageError(f"{text!r} is not a version of containerd: write 1.6, 1.7, 2.0, 2.1, 2.2 or 2.3 and so on")
    numbers = int(found[1]), int(found[2])
    if numbers < OLDEST:
        raise UsageError(f"containerd {text} is too old: 1.6 is the first that pyerofs works with")
    return numbers


def _quoted(text: str) -> str:
    """Return a TOML string, whose escapes are JSON's."""
    return json.dumps(text)

"""List the EROFS mounts of this mount namespace."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..daemon.remains import standing
from ..kernel.mountpoint import mountinfo
from .stat import health, query_all, strays


def mounts() -> list[dict[str, Any]]:
    """Return every EROFS mount of this mount namespace, and every stack of such.

    Mounts without a daemon of ours have no `pid`, `digest`, `health` and `parts`. Where the daemon does not answer
    there is no `present` and no `present_percent`. What a dead mount has left is there as well, even without a record;
    its `health` is "dead".
    """
    records = standing()
    dead = {(status["target"], status["device"]): status for status in strays()}
    statuses = {status["device"]: status for status in query_all(records)}
    found = []
    for mount in mountinfo():
        record = next((record for record in records if record.owns(mount)), None)
        stray = dead.get((mount.target, mount.source))
        if mount.fstype == "erofs" or record or stray:
            status = stray or (statuses.get(record.device, {}) if record else {})
            percent = status.get("cache", {}).get("present_percent")
            found.append(
                {
                    "target": mount.target,
                    "source": record.source if record else mount.source,
                    "device": record.device if record else mount.source,
                    "driver": record.driver if record else "fuse" if stray else "local",
                    "pid": record.pid if record else None,
                    "size": record.size if record else None,
                    "digest": record.digest if record else None,
                    "layer": record.layer if record else None,
                    "parts": [asdict(part) for part in record.parts] if record else [],
                    "present": None if percent is None else f"{percent:.1f}%",
                    "present_percent": percent,
                    "health": health(status) if status else None,
                }
            )
    return found

"""`-o remount`: what of a mount's options can change while it is mounted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..config.mount_flags import kernel_options
from ..config.option_text import as_text, split
from ..config.options import find_row, is_ours
from ..context import log_of_caller
from ..daemon.control import ask
from ..errors import UsageError
from ..kernel import mountpoint
from .reattach import find_record, reattach

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# What a daemon in the place of another one may be told anew; and what one can be told that has to stay.
_BY_ANOTHER_DAEMON = ("fill", "fill_rate", "timeout", "cache_max", "log_to", "log_level")
_AT_ONCE = ("fill", "fill_rate")


def remount(target: str, options: Sequence[str] | str, *, report: Callable[[str], None] | None = None) -> None:
    """Change options of what is mounted at `target`: oci.fill, oci.fill_rate, timeouts, the log, and mount flags.

    `options` as after -o, with or without "remount". A mount by NBD gets a new daemon for that, while reads go on.
    Raises UsageError for what cannot change, MountError.
    """
    record = find_record(target)
    found = mountpoint.find(record.target)
    items = [item for text in ([options] if isinstance(options, str) else options) for item in split(text)]
    ours = [item for item in items if is_ours(item)]
    rest = [item for item in items if not is_ours(item) and item != "remount"]
    changeable = _BY_ANOTHER_DAEMON if record.how == "netlink" else _AT_ONCE
    for item in ours:
        row = find_row(item.partition("=")[0])
        if row.field not in changeable and item not in _given(record.request):
            raise UsageError(
                f"{row.name} cannot be changed while {record.target} is mounted: `pyerofs umount {record.target}` first"
            )
    ours = [item for item in ours if find_row(item.partition("=")[0]).field in changeable]
    if found is not None:
        _change_flags(found, rest)
    if ours and record.how == "netlink":
        reattach(record.id, [as_text(item) for item in ours], report=log_of_caller(report))
    elif ours:
        ask(record.control, "change", options=[as_text(item) for item in ours])


def _given(request: dict[str, object]) -> set[str]:
    """Return what it was mounted with, which mount(8) repeats."""
    texts = request.get("options")
    return {item for text in texts for item in split(str(text))} if isinstance(texts, list) else set()


def _change_flags(found: mountpoint.MountInfo, items: list[str]) -> None:
    """Change those of the mount; the filesystem's own options stay what they are."""
    known = {*found.super_options.split(","), *found.options.split(",")}
    new = [item for item in items if item not in known]
    if not new:
        return
    writable = "rw" in found.super_options.split(",")
    flags, data, _ = kernel_options([*found.options.split(","), *new], writable=writable)
    if data:
        raise UsageError(f"{data} cannot be changed while {found.target} is mounted")
    mountpoint.remount_flags(found.target, flags)

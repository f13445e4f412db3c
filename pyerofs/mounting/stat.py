"""Mounts seen from outside: what their daemons answer, all asked at once and for a second at most.

Where one does not answer, its record is shown instead, with "error" saying why, and "dead" where none will ever come.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from ..daemon.control import ask
from ..daemon.remains import is_ours, lives, owner_of, standing
from ..daemon.stats import identity
from ..errors import MountError
from ..kernel.mountpoint import mountinfo
from ..printable import every_text, one_line
from ..quantity import show_age, show_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..daemon.record import Record

PATIENCE = 1.0  # seconds for a daemon to answer
FRESH = 60.0  # seconds for which an error is no past trouble yet
_STATES = {"T": "stopped", "t": "stopped", "D": "stuck in the kernel", "Z": "gone", "X": "gone", "": "gone"}


def query(record: Record) -> dict[str, Any]:
    """Return what its daemon says of a mount: a stats.snapshot(), or stats.identity() and an "error"."""
    try:
        return ask(record.control, "stat", PATIENCE).values
    except MountError as error:
        text = f"{error} (pid {record.pid} is {_state(record.pid)})"
        dead = _dead(record)
        return {**identity(record), "error": text, **({"dead": dead} if dead else {})}


def _dead(record: Record) -> str:
    """Why it will not answer any more; "" for one that may."""
    if record.alive():
        return ""
    if record.how != "netlink":
        return (
            f"its daemon has died, and nothing more can be read: `pyerofs umount {record.target}`, and mount it again"
        )
    if record.supervised():
        return ""
    return f"its daemon and its supervisor have died: `pyerofs reattach {record.target}`"


def strays() -> list[dict[str, Any]]:
    """Return what is mounted of mounts that have not even a record any more.

    With the fields by which metrics name them.
    """
    records = standing()
    known = {record.id for record in records}
    found = []
    for mount in mountinfo():
        owner = owner_of(mount.source) or owner_of(mount.target)
        if not is_ours(mount) or any(record.owns(mount) for record in records):
            continue
        if owner not in known and not (owner and lives(owner)):
            dead = f"its daemon has died, and nothing more can be read: `pyerofs umount {mount.target}`"
            if mount.fstype != "erofs":
                dead = "its daemon has died: `pyerofs reattach --all` removes it"
            found.append({"target": mount.target, "source": "", "digest": "", "device": mount.source, "dead": dead})
    return found


def query_all(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Each of them, in their order; those that do not answer are waited for together."""
    found: dict[str, dict[str, Any]] = {}

    def look_at(record: Record) -> None:
        found[record.id] = query(record)

    records = list(records)
    threads = [threading.Thread(target=look_at, args=(record,), daemon=True) for record in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[record.id] for record in records]


def _state(pid: int) -> str:
    """proc(5), stat, field 3."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
            letter = f.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        letter = ""
    return _STATES.get(letter, "there")


def health(status: dict[str, Any]) -> str:
    """Say in a word or two how a mount is.

    "ok"; "waiting": reads wait, and fetching has failed lately; "no answer"; "dead": it is to be unmounted, or
    reattached.
    """
    if status.get("dead"):
        return "dead"
    if "error" in status:
        return "no answer"
    error = status["last_error"]
    return "waiting" if status["reads"]["waiting"] and error and error["age_seconds"] < FRESH else "ok"


# Human-readable output.


def render(status: dict[str, Any]) -> str:
    """Render a mount's status as a few aligned lines."""
    status = every_text(status)
    layer = f"layer {status['layer']}, " if status["layer"] >= 0 else ""
    supervisor = f", supervisor {status['supervisor_pid']}" if status["supervisor_pid"] else ""
    lines = [f"{status['target']}: {status['source']}"]
    if len(status["parts"]) > 1 or status["device"] == status["id"]:
        lines += [_part(part, status["driver"]) for part in status["parts"]]
    else:
        lines += [
            f"  blob      {layer}{status['digest']}" if status["digest"] else "  blob      a local file",
            f"  device    {status['device']}, {_over(status['parts'])}by {status['driver']}",
        ]
    if "error" in status:
        said = [f"  dead      {status['dead']}"] if status.get("dead") else []
        return "\n".join([*lines, f"  daemon    {status['pid']}{supervisor}: no answer", *said])
    cache, reads, fetches, error = status["cache"], status["reads"], status["fetches"], status["last_error"]
    lines += [
        f"  daemon    {status['pid']}{supervisor}, up {show_age(status['uptime_seconds'])}, "
        f"{status['restarts']} restarts",
        f"  present   {show_bytes(cache['present_bytes'])} of {show_bytes(cache['size_bytes'])}, "
        f"{cache['present_percent']:.1f} %, {cache['verification']}"
        f"{'' if cache['complete'] or cache['fill'] == 'none' else ', being filled'}",
        *([f"  cache     {cache['directory']}"] if cache["directory"] else []),
        f"  reads     {reads['hits']} hits, {reads['misses']} misses, {reads['failed']} failed, "
        f"{reads['waiting']} waiting; {show_bytes(reads['served_bytes'])} served",
        f"  fetches   {fetches['requests']} requests, {fetches['retries']} retries, {fetches['failures']} failures, "
        f"{fetches['in_flight']} in flight; {show_bytes(fetches['received_bytes'])} received"
        f"{_wire(fetches)}",
        f"  error     {error['text']} ({show_age(error['age_seconds'])} ago)" if error else "  error     none",
        *([f"  dead      {status['dead']}"] if status.get("dead") else []),
        "",
        f"  {'latency':<12}{'count':>10}{'p50':>10}{'p90':>10}{'p99':>10}{'max':>10}",
    ]
    for name, latency in (
        ("reads", reads["latency"]),
        ("that waited", reads["waited_latency"]),
        ("fetches", fetches["latency"]),
        ("first byte", fetches["first_byte_latency"]),
    ):
        times = "".join(f"{show_time(latency[key]):>10}" for key in _TIMES) if latency["count"] else f"{'-':>10}" * 4
        lines.append(f"  {name:<12}{latency['count']:>10}{times}")
    return "\n".join(lines)


def _wire(fetches: dict[str, Any]) -> str:
    """Compressed layers take less than they give. A daemon of another version may not say it."""
    return f" ({show_bytes(fetches['wire_bytes'])} on the wire)" if "wire_bytes" in fetches else ""


def _part(part: dict[str, Any], driver: str) -> str:
    role = {"lower": "", "data": ", data", "device": ", a device"}[part["role"]]
    present = f", {part['cache']['present_percent']:.1f} % present" if part.get("cache") else ""
    device = f"{part['verity']}, {_over([part])}" if part.get("verity") else f"{part['device']}, "
    return f"  layer {part['layer']:<3} {part['digest']}{role}, {device}by {driver}{present}"


def _over(parts: list[dict[str, Any]]) -> str:
    """Say what a dm-verity device lies over."""
    return "".join(f"dm-verity over {part['device']}, " for part in parts if part.get("verity"))


_TIMES = ("p50_seconds", "p90_seconds", "p99_seconds", "max_seconds")


def show_time(seconds: float) -> str:
    """With three digits, as in `1.23 ms`."""
    for factor, unit in ((1e6, "us"), (1e3, "ms")):
        if seconds * factor < 999.5:
            return f"{round(seconds * factor, 2):.3g} {unit}"
    return f"{seconds:.3g} s" if seconds < 999.5 else f"{seconds:.0f} s"


def rates(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Say what has gone on between two snapshots of one mount, per second, on one line."""
    if "error" in now:
        return one_line(str(now["error"]))
    seconds = now["uptime_seconds"] - before.get("uptime_seconds", 0)
    if "error" in before or seconds <= 0:  # it has been restarted, or was not asked before
        before, seconds = now, 1.0

    def each_second(group: str, key: str) -> float:
        return float((now[group][key] - before[group][key]) / seconds)

    known = all("wire_bytes" in status["fetches"] for status in (before, now))
    wire = f" ({show_bytes(int(each_second('fetches', 'wire_bytes')))}/s on the wire)" if known else ""
    return (
        f"{now['cache']['present_percent']:.1f} % present, {each_second('reads', 'hits'):.0f} hits/s, "
        f"{each_second('reads', 'misses'):.0f} misses/s, {show_bytes(int(each_second('reads', 'served_bytes')))}/s "
        f"served, {show_bytes(int(each_second('fetches', 'received_bytes')))}/s received"
        f"{wire}, "
        f"{now['reads']['waiting']} waiting, {now['fetches']['in_flight']} in flight"
    )

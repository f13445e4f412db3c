"""`pyerofs cache`: what the cache holds, and how it is made smaller and verified. Its parser, and what it does.

Nothing is printed here: what is found goes, line by line, to a writer.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING

from ..errors import ImageError, UsageError
from ..printable import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..cache.directory import Contents, EntryInfo
    from ..cache.entry import Entry
    from ..config.options import ReadOptions
    from ..source.converted_cache import ConversionInfo
    from .commands import Commands

    Write = Callable[[str], None]

_KEEP = 14 * 86400.0  # seconds for which what `convert` used stays, where nobody says how long


def register(commands: Commands) -> None:
    """Add `cache`."""
    commands = commands.add_group(
        "cache",
        "show, shrink and verify the cache",
        "  pyerofs cache ls\n"
        "  pyerofs cache gc --max 20G --older-than 30d\n"
        "  pyerofs cache ACTION --help        more of them",
        run,
    )

    p = commands.add(
        "ls",
        "list the cached blobs, least recently used first",
        "  pyerofs cache ls\n  pyerofs cache ls --json | jq '.[] | select(.verified) | .digest'",
        options=False,
    )
    p.add_argument("--json", action="store_true", help="as JSON; sizes in bytes")
    _add_place(p)

    p = commands.add(
        "gc",
        "remove blobs that are broken, unused for long, or too many; never those in use",
        "  pyerofs cache gc                     broken blobs; with cache.max also what exceeds it\n"
        "  pyerofs cache gc --max 20G           the least recently used, until 20 GiB are left\n"
        "  pyerofs cache gc --older-than 30d    blobs not used for 30 days",
        options=False,
    )
    p.add_argument("--max", metavar="SIZE|N%", help="shrink the cache to this size (K, M, G, T; or N%% of the disk)")
    p.add_argument("--older-than", metavar="TIME", help="remove blobs not used for this long (units m, h, d, w)")
    _add_place(p)

    p = commands.add(
        "verify",
        "hash complete blobs, and remove those that do not match their digest",
        "  pyerofs cache verify\n  pyerofs cache verify sha256:8d5e6f 0a1b2c",
        options=False,
    )
    p.add_argument("digests", nargs="*", metavar="DIGEST", help="or its first hex digits, 6 at least (default: all)")
    _add_place(p)

    p = commands.add(
        "rm",
        "remove blobs",
        "  pyerofs cache rm sha256:8d5e6f\n"
        "  pyerofs cache rm quay.io/org/app:1.0     the layers of an image\n"
        "  pyerofs cache rm --all",
        options=False,
    )
    p.add_argument(
        "digests", nargs="*", metavar="DIGEST|IMAGE",
        help="of a blob (6 hex digits at least), a layer or a manifest; or an image's name",
    )  # fmt: skip
    p.add_argument("--all", action="store_true", help="every blob and every manifest")
    p.add_argument("--force", action="store_true", help="also blobs in use: mounts that use them keep working")
    _add_place(p)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", metavar="DIR", help="the cache's directory (default: as without -o oci.cache=)")
    parser.add_argument(
        "-o", "--options", action="append", default=[], metavar="OPTIONS", help="oci.cache=DIR, cache.max=SIZE"
    )


def run(arguments: argparse.Namespace, write: Write, report: Callable[[str], None]) -> None:
    """Run what the arguments say.

    `write` gets each line of the result, `report` what else the user should know. Raises PyerofsError.
    """
    from ..cache.paths import chosen_directory
    from ..config.file import oci_options

    options = oci_options(arguments.options)
    if arguments.dir and options.cache:
        raise UsageError("--dir and oci.cache are both given: leave one of them out")
    directory = os.path.abspath(arguments.dir) if arguments.dir else chosen_directory(options)

    def say(line: str) -> None:
        write(one_line(line))

    if arguments.action == "ls":
        _list(directory, arguments.json, write if arguments.json else say)
    elif arguments.action == "gc":
        _collect(directory, arguments, options, say, report)
    elif arguments.action == "verify":
        _verify(directory, arguments.digests, say)
    else:
        _remove(directory, arguments, say)


def _look_at(places: list[EntryInfo]) -> list[tuple[EntryInfo, Contents]]:
    """Without those that have gone meanwhile."""
    from ..cache.directory import describe

    return [(place, found) for place in places if (found := describe(place)) is not None]


def _list(directory: str, as_json: bool, write: Write) -> None:
    from ..cache.directory import scan
    from ..quantity import show_bytes
    from ..source import converted_cache

    entries = _look_at(scan(directory))
    images = converted_cache.scan(directory)
    if as_json:
        import json  # here: the other commands start without it

        write(json.dumps([_row(place, found, images) for place, found in entries], indent=2))
        return
    for place, found in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(place.used))
        disk = show_bytes(place.disk)
        line = f"{place.digest}  {found.size:>12}  {_percent(found):>5}  {disk:>10}  {used}  {_state(found)}"
        write(f"{line}, from {place.giver}" if place.is_given else line)
    for image in images:
        write(_describe(image, entries))
    total = show_bytes(sum(place.disk for place, _ in entries))
    write(f"{_count(len(entries), 'blob')}, {total} on disk in {directory}")


def _describe(image: ConversionInfo, entries: list[tuple[EntryInfo, Contents]]) -> str:
    """Describe a converted image, whose layers are blobs listed above it."""
    from ..quantity import show_bytes
    from ..source.converted_cache import is_mapped

    its = {place.digest: (place, found) for place, found in entries if place.digest in image.keys}
    there = [found for _, found in its.values()]
    complete = len(there) == len(set(image.keys)) and all(
        found.complete or (is_mapped(key) and not found.broken) for key, (_, found) in its.items()
    )
    state = "complete" if complete else "layers are missing: the next mount converts it again"
    in_use = ", in use" if any(found.in_use for found in there) else ""
    disk = show_bytes(sum(place.disk for place, _ in its.values()))
    return f"{image.digest}  {image.name}  converted, {_count(len(image.keys), 'device')}, {disk}, {state}{in_use}"


def _row(place: EntryInfo, found: Contents, images: list[ConversionInfo]) -> dict[str, object]:
    return {
        "digest": place.digest,
        "giver": place.giver or None,
        "size": found.size,
        "present": found.present,
        "disk": place.disk,
        "used": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(place.used)),
        "in_use": found.in_use,
        "complete": found.complete,
        "verified": found.verified,
        "broken": found.broken,
        "converted_for": [image.name for image in images if place.digest in image.keys],
    }


def _percent(found: Contents) -> str:
    """Never 100 % of what is not complete."""
    return f"{100 * found.present // found.size if found.size else 0} %"


def _state(found: Contents) -> str:
    state = "broken" if found.broken else "verified" if found.verified else "complete" if found.complete else "partial"
    return f"{state}, in use" if found.in_use else state


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _collect(
    directory: str, arguments: argparse.Namespace, options: ReadOptions, write: Write, report: Callable[[str], None]
) -> None:
    from ..cache.directory import drop, evict, limit_in, scan
    from ..cache.manifests import ManifestCache
    from ..quantity import parse_age, parse_limit, show_age, show_bytes
    from ..source import converted_cache

    limit = parse_limit("--max", arguments.max) if arguments.max else options.cache_max
    age = parse_age("--older-than", arguments.older_than) if arguments.older_than else None
    removed: list[EntryInfo] = []

    def gone(place: EntryInfo, why: str) -> None:
        removed.append(place)
        write(f"{place.digest}  {show_bytes(place.disk):>10}  removed: {why}")

    now = time.time()
    for place, found in _look_at(scan(directory)):
        unused = now - place.used
        old = age is not None and unused >= age
        if (found.broken or old) and not found.in_use and drop(place):
            gone(place, "broken" if found.broken else f"not used for {show_age(unused)}")
    if limit is not None and os.path.isdir(directory):
        most = limit_in(directory, limit)
        freed, left = evict(directory, most)
        for place in freed:
            gone(place, f"beyond {show_bytes(most)}")
        if left > most:
            report(f"{show_bytes(left)} are in use and stay, although only {show_bytes(most)} are allowed")
    for name in converted_cache.prune(directory, _KEEP if age is None else age):
        write(f"{name}  no longer converted: layers of it are gone")
    manifests = 0 if age is None else ManifestCache(directory, report).remove_unused(now - age)
    left = sum(place.disk for place in scan(directory))
    freed_bytes = show_bytes(sum(place.disk for place in removed))
    also = f" and {_count(manifests, 'manifest')}" if manifests else ""
    write(f"removed {_count(len(removed), 'blob')}{also}: {freed_bytes} freed, {show_bytes(left)} left")


def _chosen(directory: str, digests: list[str]) -> list[EntryInfo]:
    """Return the blobs with these digests.

    An image, given by its name or its manifest's digest, stands for its layers, but for those that other images have
    too; a layer's digest for whatever is kept of it.
    """
    from ..cache.directory import find_entry, scan
    from ..source import converted_cache
    from ..source.cached_images import native_keys

    places = scan(directory)
    images = converted_cache.scan(directory)
    found: list[EntryInfo] = []
    for text in digests:
        named = [image for image in images if text in (image.name, image.digest)]
        keys = {key for image in named for key in image.keys}
        shared = {key for image in images if image not in named for key in image.keys}
        if not named:
            keys = native_keys(directory, text)
            shared = set()
        chosen = [place for place in places if place.digest in keys - shared]
        found += chosen or find_entry(places, text)
    return list(dict.fromkeys(found))


def _verify(directory: str, digests: list[str], write: Write) -> None:
    from ..cache.directory import drop, hold, scan
    from ..cache.sharing import share

    places = _chosen(directory, digests) if digests else scan(directory)
    wrong = complete = 0
    for place in places:
        entry = hold(place)
        if entry is None:
            write(f"{place.digest}  broken: nothing of it can be verified (`pyerofs cache gc` removes it)")
            continue
        try:
            present = entry.present()
            if present < entry.size:
                write(
                    f"{place.digest}  {present} of {entry.size} bytes are there: only a complete blob can be verified"
                )
                continue
            complete += 1
            good, text, hashes = _judge(entry, place)
            if good:
                os.fdatasync(entry.data_fd)  # a mark must not outlive, in a crash of the machine, what it was made for
                entry.mark_verified(hashes)
                share(entry)
            elif good is False:
                wrong += 1
                drop(place, force=True)
            write(f"{place.digest}  {text}")
        finally:
            entry.close()
    if wrong:
        raise ImageError(
            f"{wrong} of {_count(complete, 'complete blob')} did not match their digest and were removed; "
            "mount again what is mounted from them"
        )


def _judge(entry: Entry, place: EntryInfo) -> tuple[bool | None, str, bytes]:
    """Tell whether the bytes of a complete entry are right, None where that cannot be told any more.

    And what to say.

    Where they are right, and no mark has it for each chunk, their hashes come with that.
    """
    from ..cache.directory import CHUNKS, MAP
    from ..export.digest_check import hash_all
    from ..source.index_file import agrees, has_its_hashes
    from ..source.map_file import agrees_with_map

    if not place.kind:
        found = hash_all(entry.data_fd, entry.size, place.digest.partition(":")[0], lambda: False)
        digest, hashes = found or ("", b"")
        good = digest == place.digest
        return good, "verified" if good else f"removed: its bytes have the digest {digest}", hashes
    if place.kind in (CHUNKS, MAP):
        sound = (has_its_hashes if place.kind == CHUNKS else agrees_with_map)(entry, place.digest)
        if sound is not None:
            return sound, "verified" if sound else "removed: a chunk does not match the hash in its index", b""
    elif (hashes := entry.hashes()) and (sound := agrees(entry, hashes)) is not None:
        return sound, "verified" if sound else "removed: a chunk no longer matches its recorded hash", hashes
    when = "verified as it was fetched" if place.kind in (CHUNKS, MAP) or entry.is_marked_verified() else "not verified"
    return None, f"{when}; it was decompressed, and no hash of the result is known", b""


def _remove(directory: str, arguments: argparse.Namespace, write: Write) -> None:
    from ..cache.directory import drop, scan
    from ..cache.manifests import ManifestCache
    from ..source import converted_cache

    if bool(arguments.digests) == arguments.all:
        raise UsageError("name the blobs to remove by their digests, or all of them by --all")
    kept = []
    for place in scan(directory) if arguments.all else _chosen(directory, arguments.digests):
        if drop(place, force=arguments.force):
            write(f"{place.digest}  removed")
        else:
            kept.append(place)
    for name in converted_cache.prune(directory, 0):
        write(f"{name}  no longer converted")
    if arguments.all:
        ManifestCache(directory, write).remove_unused(float("inf"))
    if kept:
        some = ", ".join(place.digest for place in kept[:3]) + (", ..." if len(kept) > 3 else "")
        raise UsageError(f"not removed, in use: {some} (--force removes it; mounts that use it keep working)")

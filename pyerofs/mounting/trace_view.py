"""A trace for people: a table of its files, and a picture of the image with what was read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..quantity import show_bytes

if TYPE_CHECKING:
    from ..erofs.trace import Trace

_GRANULE = 4096  # bytes
_COLUMNS, _CELL, _MARGIN = 128, 6, 20  # of the picture; cells in pixels
_ROWS_MAX = 96  # of a device
_COLD = "#e4e4e4"


def table(trace: Trace) -> str:
    """Return a line for each file, in the order in which they were read first, and the sums."""
    size: dict[int, int] = {}
    first: dict[int, int] = {}
    for read in trace.reads:
        size[read.file] = size.get(read.file, 0) + read.granules * _GRANULE
        first.setdefault(read.file, read.ms)
    lines = [f"{'first at':>10}  {'read':>10}  file"]
    for file, ms in first.items():
        name = trace.files[file].decode(errors="backslashreplace") if file >= 0 else "(names, attributes and others)"
        lines.append(f"{ms / 1000:>8.3f} s  {show_bytes(size[file]):>10}  {name}")
    whole = sum(device.size for device in trace.devices)
    last = max((read.ms for read in trace.reads), default=0)
    files = len([file for file in first if file >= 0])
    lines.append(
        f"{last / 1000:>8.3f} s  {show_bytes(sum(size.values())):>10}  of {show_bytes(whole)}, {files} files, "
        f"{len(trace.reads)} stretches, {len(trace.devices)} devices"
    )
    return "\n".join(lines)


def plot(trace: Trace) -> str:
    """Return an SVG: each device as a block of cells, what was read first red, what was read last blue."""
    last = max((read.ms for read in trace.reads), default=0) or 1
    parts: list[str] = []
    y = _MARGIN
    for number, device in enumerate(trace.devices):
        granules = -(-device.size // _GRANULE)
        each = max(1, -(-granules // (_COLUMNS * _ROWS_MAX)))  # granules of a cell
        cells = -(-granules // each)
        times: dict[int, int] = {}
        for read in trace.reads:
            if read.device == number:
                for cell in range(read.first // each, (read.first + read.granules - 1) // each + 1):
                    times[cell] = min(times.get(cell, last), read.ms)
        parts.append(f'<text x="{_MARGIN}" y="{y}">{_label(device.digest, device.size, each)}</text>')
        y += _CELL
        rows = -(-cells // _COLUMNS)
        full, rest = divmod(cells, _COLUMNS)
        for width, height, top in ((_COLUMNS, full, 0), (rest, 1 if rest else 0, full)):
            if width and height:
                parts.append(_rectangle(_MARGIN, y + top * _CELL, width * _CELL, height * _CELL, _COLD))
        for cell, ms in sorted(times.items()):
            row, column = divmod(cell, _COLUMNS)
            hue = round(240 * ms / last)
            parts.append(
                _rectangle(_MARGIN + column * _CELL, y + row * _CELL, _CELL - 1, _CELL - 1, f"hsl({hue},80%,50%)")
            )
        y += rows * _CELL + 2 * _MARGIN
    scale = "".join(
        _rectangle(_MARGIN + step * _CELL, y - _CELL, _CELL, _CELL, f"hsl({step * 6},80%,50%)") for step in range(41)
    )
    parts.append(f'{scale}<text x="{_MARGIN + 42 * _CELL}" y="{y}">0 to {last / 1000:.2f} s</text>')
    width, height = 2 * _MARGIN + _COLUMNS * _CELL, y + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _rectangle(x: int, y: int, width: int, height: int, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"/>'


def _label(digest: str, size: int, each: int) -> str:
    safe = "".join(char if char.isalnum() or char in ":+-@=" else "?" for char in digest[:40])
    return f"{safe}: {show_bytes(size)}, a cell is {show_bytes(each * _GRANULE)}"

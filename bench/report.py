"""The comparison's results: a table in Markdown, JSON, plots."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from rows import Line

_HEAD = ("row", "pyerofs", "peer", "ratio: median (min to max)", "must", "aim", "verdict")


def number(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


def _amount(values: Sequence[float], unit: str) -> str:
    return f"{number(statistics.median(values))} {unit}" if values else ""


def _bound(line: Line, value: float | None) -> str:
    if value is None:
        return ""
    return f"{'≥' if line.least else '≤'} {number(value)}{'' if line.ratio else ' ' + line.unit}"


def _cells(line: Line) -> tuple[str, ...]:
    peer = f"{line.peer}: {_amount(line.peers, line.unit)}" if line.peers else line.peer
    median, low, high = (number(f(line.score)) for f in (statistics.median, min, max))
    spread = f"{median} ({low} to {high})"
    mark = f" {line.note}" if line.note else ""
    must, aim = _bound(line, line.must), _bound(line, line.aim)
    return line.row + mark, _amount(line.pyerofs, line.unit), peer, spread, must, aim, line.verdict


def table(lines: Sequence[Line]) -> str:
    rows = [_HEAD, tuple("---" for _ in _HEAD), *map(_cells, lines)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def machine() -> dict[str, object]:
    """What a reader has to know of the machine to judge the numbers."""
    model = next(
        (s.partition(":")[2].strip() for s in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in s),
        platform.machine(),
    )
    memory = int(Path("/proc/meminfo").read_text().split()[1]) >> 20
    system = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    return {
        "cpu": f"{len(os.sched_getaffinity(0))} x {model}",
        "memory": f"{memory} GiB",
        "system": f"{system}, kernel {platform.release()}, Python {platform.python_version()}",
        "programs": _versions(),
        "load": os.getloadavg()[0],
        "when": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    }


def _versions() -> str:
    packages = ("nbdkit", "libnbd-bin", "qemu-utils", "fio", "docker-registry", "curl")
    command = ["dpkg-query", "-W", "-f", "${Package} ${Version}, ", *packages]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.rstrip(", ")


def describe(about: dict[str, object]) -> str:
    parts = [
        f"{about['cpu']}, {about['memory']}",
        about["system"],
        about["programs"],
        f"load {about['load']:.1f} before",
    ]
    return "; ".join(map(str, parts))


def write_json(path: Path, about: dict[str, object], measured: dict[str, float], lines: Sequence[Line]) -> None:
    text = {"machine": about, "proxy": measured, "lines": [line.as_json() for line in lines]}
    path.write_text(json.dumps(text, indent=2, ensure_ascii=False) + "\n")


def plot(directory: Path, lines: Sequence[Line]) -> None:
    """A picture for each row: medians of pyerofs and its peers, with every run as a dot."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    directory.mkdir(parents=True, exist_ok=True)
    by_row: dict[str, list[Line]] = {}
    for line in lines:
        by_row.setdefault(line.row, []).append(line)
    for name, of_row in by_row.items():
        series = {"pyerofs": of_row[0].pyerofs}
        series.update({line.peer: line.peers for line in of_row if line.peers})
        figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.5 * len(series)))
        for at, (who, values) in enumerate(series.items()):
            color = "tab:blue" if who == "pyerofs" else "tab:gray"
            axes.barh(at, statistics.median(values), color=color, alpha=0.6)
            axes.plot(values, [at] * len(values), "k.", markersize=5)
        axes.set_yticks(range(len(series)), list(series))
        axes.invert_yaxis()
        axes.set_xlabel(of_row[0].unit)
        axes.set_xlim(left=0)
        axes.set_title(name, fontsize=9)
        figure.tight_layout()
        safe = "".join(c if c.isalnum() else "-" for c in name).strip("-")
        while "--" in safe:
            safe = safe.replace("--", "-")
        figure.savefig(directory / f"{safe}.svg")
        pyplot.close(figure)

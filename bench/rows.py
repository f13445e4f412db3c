"""What a row of the comparison is: values of pyerofs and of a peer, measured in turns, and what is asked of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

from stage import Stage


@dataclass
class Line:
    """One line of the table. `score` is what `must` and `aim` are said of: one number for each run."""

    row: str
    unit: str
    pyerofs: list[float]
    score: list[float]
    peer: str = ""
    peers: list[float] = field(default_factory=list)
    must: float | None = None
    aim: float | None = None
    least: bool = True  # the score must be that or more; False: or less
    ratio: bool = True  # the score is a ratio to the peer, or a number in the row's unit
    note: str = ""

    @property
    def verdict(self) -> str:
        score = statistics.median(self.score)
        for bound, word in ((self.aim, "aim"), (self.must, "must")):
            if bound is not None and (score >= bound if self.least else score <= bound):
                return word
        return "**short**" if self.must is not None else ""

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "verdict": self.verdict.strip("*")}


@dataclass
class Bench:
    """What a row is given."""

    stage: Stage
    runs: int
    quick: bool
    erofs_utils: str | None  # mount.erofs
    say: Callable[[str], None]

    @property
    def seconds(self) -> float:
        return 1 if self.quick else 3


Row = Callable[[Bench], Iterator[Line]]
ROWS: dict[str, Row] = {}


def row(name: str) -> Callable[[Row], Row]:
    def register(function: Row) -> Row:
        ROWS[name] = function
        return function

    return register


def in_turns(
    bench: Bench, contenders: Mapping[str, Callable[[], float]], runs: int | None = None
) -> dict[str, list[float]]:
    """Each once, then each again: A B A B, so that whatever else the machine does hits all of them."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(runs or bench.runs):
        for name, measure in contenders.items():
            found[name].append(measure())
    for name, values in found.items():
        bench.say(f"  {name}: {' '.join(f'{value:.4g}' for value in values)}")
    return found


def faster(row: str, unit: str, found: Mapping[str, list[float]], peer: str, **asked: object) -> Line:
    """pyerofs against a peer; the ratio says how many times faster pyerofs is, whether the unit is s or 1/s."""
    ours, theirs = found["pyerofs"], found[peer]
    down = unit in ("s", "ms")
    score = [b / a if down else a / b for a, b in zip(ours, theirs, strict=False)]
    return Line(row, unit, ours, score, peer, theirs, **asked)  # type: ignore[arg-type]  # a fake

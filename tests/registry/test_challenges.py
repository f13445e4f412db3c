"""Challenges of WWW-Authenticate: RFC 9110's grammar, and text that follows none."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyerofs.registry.auth import Challenge, parse_challenges


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        (["Basic"], [Challenge("basic", {})]),
        (['BASIC Realm="x"'], [Challenge("basic", {"realm": "x"})]),
        (
            ['Bearer realm="https://auth/token",service="s",scope="repository:a/b:pull,push"'],
            [Challenge("bearer", {"realm": "https://auth/token", "service": "s", "scope": "repository:a/b:pull,push"})],
        ),
        (
            ['Basic realm="a, b=c", Bearer realm = x ,service=s'],
            [Challenge("basic", {"realm": "a, b=c"}), Challenge("bearer", {"realm": "x", "service": "s"})],
        ),
        (
            ["Negotiate abc==, Basic realm=x", "Bearer"],
            [Challenge("negotiate", {}, "abc=="), Challenge("basic", {"realm": "x"}), Challenge("bearer", {})],
        ),
        (["Negotiate, Basic realm=x"], [Challenge("negotiate", {}), Challenge("basic", {"realm": "x"})]),
        ([r'Basic realm="say \"hi\" \\ there"'], [Challenge("basic", {"realm": r'say "hi" \ there'})]),
        ([', ,Basic realm="x",,charset=UTF-8,'], [Challenge("basic", {"realm": "x", "charset": "UTF-8"})]),
        (["Basic realm=x, realm=y"], [Challenge("basic", {"realm": "x"})]),
        (['Bearer realm="https://unclosed'], None),
        (["=,;:"], []),
    ],
)
def test_challenges(values: list[str], expected: list[Challenge] | None) -> None:
    found = parse_challenges(values)
    if expected is not None:
        assert found == expected


PIECES = st.sampled_from(
    ["Basic", "Bearer", " ", ",", "=", '"', "\\", "realm", 'realm="x"', "a68==", "\t", "\xe9", "/"]
)


@given(st.lists(st.text() | st.lists(PIECES).map("".join)))
def test_challenges_never_raise(values: list[str]) -> None:
    for challenge in parse_challenges(values):
        assert challenge.scheme == challenge.scheme.lower() != ""


TOKEN = st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789-_.", min_size=1)


@given(st.lists(st.tuples(TOKEN, st.dictionaries(TOKEN, st.text(), min_size=1)), max_size=4))
def test_challenges_round_trip(challenges: list[tuple[str, dict[str, str]]]) -> None:
    def quote(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    texts = [f"{scheme} " + ",".join(f"{k}={quote(v)}" for k, v in fields.items()) for scheme, fields in challenges]
    assert parse_challenges([", ".join(texts)]) == [Challenge(scheme, fields) for scheme, fields in challenges]


@pytest.mark.parametrize("unit", ['"', 'a="', "a ", "a=", "\\", "=", 'a="\\"', "a,", "a=b,", "Basic a="])
def test_long_challenges_are_read_in_linear_time(unit: str) -> None:
    """As long as its 64 parts together, whatever the machine; at the square of the length it were 64 times that."""
    part = unit * (512 // len(unit))

    def seconds(values: list[str]) -> float:
        began = time.process_time()
        parse_challenges([f"Basic {value}" for value in values])
        return time.process_time() - began

    assert min(seconds([part * 64]) for _ in range(3)) < 16 * min(seconds([part] * 64) for _ in range(3))

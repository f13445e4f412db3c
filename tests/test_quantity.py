"""Sizes and ages, as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.errors import UsageError
from pyerofs.quantity import Limit, parse_age, parse_limit, parse_size, show_age, show_bytes


@pytest.mark.parametrize(("text", "size"), [
    ("1", 1), ("4096", 4096), ("1K", 1024), ("1k", 1024), ("20M", 20 << 20), ("1.5G", 3 << 29), ("2T", 2 << 40),
    ("0.25K", 256), ("1.000001K", 1024),
])  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size("x", text) == size
    assert parse_limit("x", text) == Limit(size)


@pytest.mark.parametrize(
    "text", ["", "0", "0K", "-1", "+1", " 1", "1 K", "K", "1.5", "1.K", ".5K", "1P", "1KiB", "1e3", "9" * 13, "\u0661"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match=r"name="):
        parse_size("name", text)
    with pytest.raises(UsageError, match=r"name="):
        parse_limit("name", text)


def test_shares() -> None:
    assert parse_limit("x", "50%") == Limit(50, percent=True)
    assert Limit(50, percent=True).of(1001) == 500
    assert Limit(100, percent=True).of(7) == 7
    assert Limit(4096).of(7) == 4096
    for text in ("0%", "101%", "5.5%", "%", "1K%"):
        with pytest.raises(UsageError):
            parse_limit("x", text)


def test_ages() -> None:
    assert [parse_age("x", text) for text in ("0", "90s", "90s", "2m", "1h", "7d", "2w")] == [
        0, 90, 90, 120, 3600, 7 * 86400, 14 * 86400,
    ]  # fmt: skip
    for text in ("", "-1", "1.5h", "d", "1y", "1 d"):
        with pytest.raises(UsageError, match="--older-than="):
            parse_age("--older-than", text)


@pytest.mark.parametrize(("number", "shown"), [
    (0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 29, "1.5 GiB"),
    (5 << 40, "5.0 TiB"), (5000 << 40, "5000.0 TiB"),
])  # fmt: skip
def test_shown_sizes(number: int, shown: str) -> None:
    assert show_bytes(number) == shown


@pytest.mark.parametrize(("seconds", "shown"), [
    (-5, "0 seconds"), (1.9, "1 second"), (119, "119 seconds"), (120, "2 minutes"), (7200, "2 hours"),
    (86400, "24 hours"), (3 * 86400, "3 days"), (30 * 86400, "4 weeks"),
])  # fmt: skip
def test_shown_ages(seconds: float, shown: str) -> None:
    assert show_age(seconds) == shown


@given(st.text())
@settings(deadline=None, derandomize=True)
def test_any_text_is_a_quantity_or_a_usage_error(text: str) -> None:
    for parse in (parse_size, parse_limit, parse_age):
        try:
            parse("x", text)
        except UsageError as error:
            assert "\n" not in str(error)

"""What answers say: tables, and for every parser that no text makes it raise."""

from __future__ import annotations

from email.utils import formatdate, parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyerofs.errors import AuthError, NotFoundError, RegistryError
from pyerofs.http.answer import (
    Headers,
    Response,
    content_range,
    explanation,
    failure,
    http_date,
    iso_date,
    json_object,
    number,
    presigned_lifetime,
    retry_after,
)
from pyerofs.http.url import parse

NOW = 1_700_000_000.0
DIGITS = st.text(alphabet="0123456789-/*bytes ,", max_size=40)


def headers(*lines: str) -> Headers:
    fields = Headers()
    for line in lines:
        fields.add_line(line.encode("latin-1") + b"\r\n")
    return fields


def test_headers() -> None:
    fields = headers("ETag: a", "etag:b ", "X: 1", " 2", "junk", "")
    assert fields.get("ETAG") == "b"
    assert fields.all("Etag") == ["a", "b"]
    assert fields.combined("etag") == "a, b"
    assert fields.get("x") == "1 2"
    assert fields.get("none") is None
    assert fields.combined("none") is None


@given(st.lists(st.binary()))
def test_headers_take_any_bytes(lines: list[bytes]) -> None:
    fields = Headers()
    for line in lines:
        fields.add_line(line)
    list(fields)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes 0-0/1", (0, 0, 1)),
        ("Bytes  5-9/*", (5, 9, None)),
        ("bytes 0-9/10, bytes 0-9/10", None),
        ("bytes */10", None),
        ("bytes=0-9/10", None),
        ("bytes 0-9", None),
        ("bytes -1-9/10", None),
        ("bytes \u0661-9/10", None),
        ("", None),
        (None, None),
    ],
)
def test_content_range(text: str | None, expected: tuple[int, int, int | None] | None) -> None:
    assert content_range(text) == expected


@given(st.one_of(st.text(), DIGITS))
def test_parsers_never_raise(text: str) -> None:
    content_range(text)
    number(text)
    http_date(text)
    iso_date(text)
    waiting = retry_after(text, NOW)
    assert waiting is None or waiting >= 0


@given(st.integers(0, 4_000_000_000))
def test_dates_agree_with_the_library(seconds: int) -> None:
    text = formatdate(seconds, usegmt=True)
    assert http_date(text) == seconds
    assert iso_date(parsedate_to_datetime(text).isoformat()) == seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2023-11-14T22:13:20Z", NOW),
        ("20231114T221320Z", NOW),
        ("2023-11-14T22:13:20.123456789Z", NOW),
        ("2023-11-15T00:13:20+02:00", NOW),
        ("2023-11-14T22:13Z", NOW - 20),
        ("2023-13-14T22:13:20Z", None),
        ("2023-11-14", None),
    ],
)
def test_iso_date(text: str, expected: float | None) -> None:
    assert iso_date(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0.0),
        ("120", 120.0),
        ("-1", None),
        ("soon", None),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tue, 14 Nov 2023 22:13:00 GMT", 0.0),
        (None, None),
        ("1.5", None),
    ],
)
def test_retry_after(text: str | None, expected: float | None) -> None:
    assert retry_after(text, NOW) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("X-Amz-Date=20231114T221320Z&X-Amz-Expires=1200&X-Amz-Signature=x", 1200),
        ("X-Goog-Date=20231114T221310Z&X-Goog-Expires=60", 50),
        (f"Expires={int(NOW) + 300}&Signature=x", 300),
        ("sv=2020&se=2023-11-14T22%3A23%3A20Z&sig=x", 600),
        ("X-Amz-Date=20231114T221320Z", None),
        ("Expires=never", None),
        ("", None),
    ],
)
def test_presigned_lifetime(query: str, expected: float | None) -> None:
    assert presigned_lifetime(parse(f"https://cdn/blob?{query}"), NOW) == expected


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="#\\")))
def test_presigned_lifetime_never_raises(query: str) -> None:
    presigned_lifetime(parse(f"https://cdn/blob?{query}"), NOW)


def answer(status: int, body: bytes = b"", *lines: str) -> Response:
    return Response(parse("https://r.example/v2/x?secret"), status, headers(*lines), body)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"errors":[{"code":"DENIED","message":"no\\naccess"}]}', "403, DENIED: no access"),
        (b'{"details":"incorrect username or password"}', "403, incorrect username or password"),
        (b'{"error":"invalid_grant"}', "403, invalid_grant"),
        (b"<html>", "403"),
        (b'{"errors":[]}', "403"),
        (b'{"errors":[7]}', "403"),
        (b'{"errors":[{"code":7}]}', "403"),
        (b"[" * 100_000, "403"),
        (b'"' + b"\xff", "403"),
    ],
)
def test_explanation(body: bytes, expected: str) -> None:
    assert explanation(answer(403, body)) == expected


def test_explanation_is_bounded() -> None:
    assert len(explanation(answer(500, b'{"error":"' + b"x" * 5000 + b'"}'))) < 250


@given(st.binary())
def test_any_body_is_explained(body: bytes) -> None:
    assert explanation(answer(500, body)).isprintable()
    json_object(body)


@pytest.mark.parametrize(
    ("status", "kind", "temporary"),
    [
        (400, RegistryError, False),
        (401, AuthError, False),
        (403, AuthError, False),
        (404, NotFoundError, False),
        (408, RegistryError, True),
        (410, RegistryError, False),
        (429, RegistryError, True),
        (500, RegistryError, True),
        (503, RegistryError, True),
    ],
)
def test_failure(status: int, kind: type[RegistryError], temporary: bool) -> None:
    error = failure(answer(status, b"", "Retry-After: 7"), "blob b", NOW)
    assert type(error) is kind
    assert error.temporary is temporary
    assert error.retry_after == (7 if temporary else None)
    assert str(error) == f"r.example: blob b: {status}"

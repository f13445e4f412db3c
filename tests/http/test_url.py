"""URLs as the program takes them: what both parsers must agree on, and what is refused."""

from __future__ import annotations

from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyerofs.http.url import Url, form, is_link_local, is_loopback, join, parse, peer_check


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://h", Url("http", "h", 80, "/")),
        ("HTTPS://Host.Example/A?b=C#frag", Url("https", "host.example", 443, "/A?b=C")),
        ("http://127.0.0.1:5000/v2/", Url("http", "127.0.0.1", 5000, "/v2/")),
        ("https://[::1]:8443?x=1", Url("https", "[::1]", 8443, "/?x=1")),
        ("https://cdn/a b".replace(" ", "%20"), Url("https", "cdn", 443, "/a%20b")),
        ("https://cdn/\xe4", Url("https", "cdn", 443, "/%E4")),
    ],
)
def test_parse(text: str, expected: Url) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h",
        "//h/x",
        "ftp://h/",
        "file:///etc/passwd",
        "http://",
        "http:///x",
        "http://u:p@h/",
        "http://u@h/",
        "http://h\\@other/",
        "http://h /",
        "http://h/a b",
        "http://h/\nx",
        "http://h:0/",
        "http://h:65536/",
        "http://h:x/",
        "http://h%2eexample/",
        "http://ä/",
        "http://[::1/",
        "http://[::1]x/",
        "http://h:80:80/",
        "http://h/\\x",
    ],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        parse(text)


@given(st.text())
def test_parse_never_fails_otherwise(text: str) -> None:
    for candidate in (text, f"http://{text}", f"https://h/{text}"):
        try:
            url = parse(candidate)
        except ValueError:
            continue
        assert parse(str(url)) == url
        assert "@" not in url.authority


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://other/x?y", "https://other/x?y"),
        ("//other:1/x", "http://other:1/x"),
        ("/x?y=http://z/", "http://h:5000/x?y=http://z/"),
        ("x", "http://h:5000/a/x"),
        ("?q=1", "http://h:5000/a/b?q=1"),
        ("/a file?name=the file.erofs", "http://h:5000/a%20file?name=the%20file.erofs"),
        (" https://other/a b ", "https://other/a%20b"),
    ],
)
def test_join(location: str, expected: str) -> None:
    assert str(join(parse("http://h:5000/a/b"), location)) == expected


@pytest.mark.parametrize("location", ["http://h x/", "http://h/\tx", "http:// h/", "http://u p@h/"])
def test_join_refuses(location: str) -> None:
    """Blanks are escaped where a path or a query may have them only."""
    with pytest.raises(ValueError, match="not a"):
        join(parse("http://h:5000/a/b"), location)


def test_what_is_shown_has_no_query() -> None:
    assert parse("https://cdn:443/blob?X-Amz-Signature=secret").shown == "cdn/blob"


def test_same_origin() -> None:
    assert parse("http://h/a").same_origin(parse("http://H:80/b"))
    assert not parse("http://h/a").same_origin(parse("https://h/a"))
    assert not parse("http://h/a").same_origin(parse("http://h:81/a"))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.255.0.9", "[::1]"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["localhost.example", "128.0.0.1", "127.0.0.1.example", "127.1", "[::2]", "10.0.0.1"])
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "169.254.43518",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "[fe80::1]",
        "febf::1",
        "[::ffff:169.254.169.254]",
        "::ffff:a9fe:a9fe",
        "metadata.google.internal",
        "Metadata.Google.Internal.",
        "100.100.100.200",
        "[fd00:ec2::254]",
    ],
)
def test_link_local(host: str) -> None:
    assert is_link_local(host)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "10.1.2.3", "[::1]", "fec0::1", "quay.io", "169.255.1.1", "1.2.3.4.5", ""]
)
def test_not_link_local(host: str) -> None:
    assert not is_link_local(host)


@given(st.text())
def test_link_local_never_raises(host: str) -> None:
    is_link_local(host)


def test_peer_check() -> None:
    own = parse("http://169.254.1.1:5000/v2")
    check = peer_check(parse("http://cdn/x"), own)
    assert check is not None
    assert check("10.0.0.1") and not check("169.254.169.254")
    assert peer_check(parse("http://169.254.1.1/x"), own) is None


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1))))
def test_form_round_trips(fields: list[tuple[str, str]]) -> None:
    text = form(fields)
    assert text.isascii()
    assert parse_qsl(text) == fields

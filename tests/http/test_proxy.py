"""Which proxy, if any; and exchanges through one that does what it should, and through ones that do not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyerofs.errors import UsageError
from pyerofs.http import proxy as p
from pyerofs.http.curlerror import TransportError
from pyerofs.http.proxy import Proxy, choose, is_excluded
from pyerofs.http.request import Request
from pyerofs.http.tls import TLS
from pyerofs.http.transport import Transport
from pyerofs.http.url import parse
from pyerofs.registry.client import Registry
from pyerofs.registry.credentials import Credentials
from pyerofs.registry.hosts import Host, HostConfig
from pyerofs.secret import Secret
from tests.support.blobreader import DATA, SIZE, fails, read
from tests.support.fakeregistry import Certificate, FakeRegistry, redirect
from tests.support.nginxserver import Authority
from tests.support.proxyserver import ProxyServer

DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
ME = Credentials("the options", "me", Secret("hush"))


# Which


@pytest.mark.parametrize(
    ("text", "url", "user", "password"),
    [
        ("http://proxy:8080", "http://proxy:8080", None, None),
        ("proxy", "http://proxy:3128", None, None),
        ("proxy:80/", "http://proxy:80", None, None),
        ("HTTPS://Proxy", "https://proxy:443", None, None),
        ("socks5h://[::1]", "socks5h://[::1]:1080", None, None),
        ("http://me:hush@proxy:1", "http://proxy:1", "me", "hush"),
        ("http://me:h%40u%3Ash@proxy:1", "http://proxy:1", "me", "h@u:sh"),
        ("me@proxy:1", "http://proxy:1", "me", None),
    ],
)
def test_parse(text: str, url: str, user: str | None, password: str | None) -> None:
    proxy = p.parse(text, "x")
    assert proxy.url == url
    assert [s.reveal() if s else None for s in (proxy.username, proxy.password)] == [user, password]
    assert "hush" not in repr(proxy)


@pytest.mark.parametrize(
    "text", ["ftp://hush", "http://", "http://a:hush@b@c", "http://x/hush", "x:0", "x:99999", "a b"]
)
def test_no_proxy_at_all(text: str) -> None:
    with pytest.raises(UsageError, match=r"^oci\.proxy is not the URL of a proxy") as caught:
        choose(text, {})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        ("http://r.example/", {}, None),
        ("http://r.example/", {"http_proxy": "a:1"}, "http://a:1"),
        ("http://r.example/", {"HTTP_PROXY": "a:1"}, None),
        ("http://r.example/", {"https_proxy": "a:1"}, None),
        ("https://r.example/", {"http_proxy": "a:1"}, None),
        ("https://r.example/", {"https_proxy": "a:1", "HTTPS_PROXY": "b:1"}, "http://a:1"),
        ("https://r.example/", {"HTTPS_PROXY": "b:1"}, "http://b:1"),
        ("https://r.example/", {"all_proxy": "c:1"}, "http://c:1"),
        ("http://r.example/", {"ALL_PROXY": "socks5://c"}, "socks5://c:1080"),
        ("https://r.example/", {"https_proxy": "", "all_proxy": "c:1"}, "http://c:1"),
        ("https://r.example/", {"https_proxy": "a:1", "no_proxy": "r.example"}, None),
        ("https://r.example/", {"https_proxy": "a:1", "NO_PROXY": "example"}, None),
        ("https://localhost:5000/", {"https_proxy": "a:1"}, None),
        ("http://127.0.0.1/", {"http_proxy": "a:1"}, None),
    ],
)
def test_environment(url: str, environ: dict[str, str], expected: str | None) -> None:
    proxy = choose(None, environ)(parse(url))
    assert (proxy.url if proxy else None) == expected


def test_option_is_for_everything() -> None:
    choice = choose("a:1", {"http_proxy": "b:1", "no_proxy": "*"})
    for url in ("http://r.example", "https://127.0.0.1"):
        assert choice(parse(url)) == Proxy("http", "a:1")


def test_broken_environment() -> None:
    with pytest.raises(UsageError, match=r"^\$https_proxy is not the URL of a proxy") as caught:
        choose(None, {"https_proxy": "http://me:hush@"})(parse("https://r.example"))
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("host", "no_proxy", "expected"),
    [
        ("r.example", "", False),
        ("r.example", "*", True),
        ("r.example", " a , R.example ,b", True),
        ("r.example", "example", True),
        ("r.example", ".example", True),
        ("r.example", "*.example", True),
        ("example", ".example", True),
        ("r.example", "xample", False),
        ("r.example", "er.example", False),
        ("r.example:8080", "r.example:8080", True),
        ("r.example:8080", "r.example:80", False),
        ("r.example:8080", "r.example:8\u00b9", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("r.example", "10.0.0.0/8", False),
        ("10.1.2.3", "10.0.0.0/nonsense", False),
        ("[fd00::1]", "fd00::1", True),
        ("[fd00::1]", "[fd00::1]", True),
        ("[fd00::1]:5000", "[fd00::1]:5000", True),
        ("[fd00::1]", "fd00::/8", True),
        ("[fd00::1]", "fd00::2", False),
    ],
)
def test_exceptions(host: str, no_proxy: str, expected: bool) -> None:
    assert is_excluded(parse(f"http://{host}/"), no_proxy) is expected


@given(st.text(), st.text())
def test_any_text(text: str, no_proxy: str) -> None:
    is_excluded(parse("https://r.example"), no_proxy)
    try:
        p.parse(text, "x")
    except UsageError as error:
        assert "\n" not in str(error)


# Through one


@pytest.fixture
def server() -> Iterator[FakeRegistry]:
    with FakeRegistry() as fake:
        fake.add_blob(DATA)
        yield fake


@pytest.fixture
def proxy(server: FakeRegistry) -> Iterator[ProxyServer]:
    with ProxyServer(server.host, ("puser", "phush")) as proxy:
        yield proxy


@pytest.fixture
def trace() -> Iterator[list[str]]:
    lines: list[str] = []
    yield lines
    assert not any(secret in "".join(lines) for secret in ("hush", "puser"))


def through(proxy: ProxyServer, user: str = "puser:phush@") -> str:
    return f"http://{user}{proxy.host}"


def environment(proxy: ProxyServer, user: str = "puser:phush@") -> dict[str, str]:
    return {"http_proxy": through(proxy, user), "https_proxy": through(proxy, user)}


def test_plain_http(server: FakeRegistry, proxy: ProxyServer, trace: list[str]) -> None:
    """Registry, token server and the host that it redirects to: all through the proxy."""
    server.token_uses, server.realm = 100, "http://tokens.example/token"
    server.script(redirect("http://cdn.example{path}?signature=hush"))
    transport = Transport(trace=trace.append, proxies=choose(None, environment(proxy)))
    registry = Registry("registry.example", "a", transport, insecure=True, credentials=lambda: ME)
    plain = [e for e in registry.mirrors[0].endpoints if e.origin.url.scheme == "http"]
    registry.mirrors[0].endpoints = plain
    read(registry.blob(DIGEST, SIZE))
    hosts = [parse(asked.target).host for asked in proxy.asked]
    # The backend is the same for all, and refuses the link, which has no token: it is resolved again.
    assert hosts == ["registry.example", "tokens.example", "registry.example", "cdn.example", "registry.example"]
    assert all(f" via {proxy.host} -> " in line for line in trace)
    assert not any("proxy-authorization" in seen.headers for seen in server.seen)


def test_tls(tmp_path: Path, trace: list[str]) -> None:
    """The proxy sees a host and a port, and nothing else; the certificate is the registry's."""
    authority = Authority(tmp_path)
    certificate = Certificate(*authority.issue("registry", "DNS:registry.example"))
    with FakeRegistry(certificate=certificate) as server, ProxyServer(server.host, ("puser", "phush")) as proxy:
        server.add_blob(DATA)
        server.basic = ("me", "hush")
        transport = Transport(trace=trace.append, proxies=choose(None, environment(proxy)))
        config = HostConfig(server=Host(ca=(str(authority.ca),)))
        registry = Registry("registry.example", "a", transport, credentials=lambda: ME, config=config)
        blob = registry.blob(DIGEST, SIZE)
        read(blob)
        read(blob)
    (asked,) = proxy.asked
    assert (asked.method, asked.target) == ("CONNECT", "registry.example:443")
    assert "authorization" not in asked.headers and "range" not in asked.headers


@pytest.mark.parametrize("option", [False, True])
def test_wrong_password(server: FakeRegistry, proxy: ProxyServer, trace: list[str], option: bool) -> None:
    url = through(proxy, "puser:wronghush@")
    transport = Transport(trace=trace.append, proxies=choose(url if option else None, {"https_proxy": url}))
    with pytest.raises(TransportError) as caught:
        transport.request(Request(parse("https://registry.example/v2/?q=hush")))
    assert str(caught.value).startswith(f"the proxy {proxy.host} needs a user and a password")
    assert not caught.value.temporary and "hush" not in str(caught.value)
    assert server.seen == []


@pytest.mark.parametrize(("status", "temporary"), [(403, False), (405, False), (502, True), (503, True), (429, True)])
def test_proxy_that_does_not_connect(proxy: ProxyServer, status: int, temporary: bool) -> None:
    proxy.refuse = status
    transport = Transport(proxies=choose(through(proxy), {}))
    with pytest.raises(TransportError) as caught:
        transport.request(Request(parse("https://registry.example/v2/")))
    assert str(caught.value) == f"the proxy {proxy.host} does not connect to registry.example: {status}"
    assert (caught.value.temporary, caught.value.kind) == (temporary, "connect")


def test_proxy_that_is_not_there(server: FakeRegistry) -> None:
    with ProxyServer(server.host) as gone:
        pass
    transport = Transport(proxies=choose(through(gone), {}))
    for scheme in ("http", "https"):
        with pytest.raises(TransportError) as caught:
            transport.request(Request(parse(f"{scheme}://registry.example/v2/")))
        assert str(caught.value) == f"connection to the proxy {gone.host} refused"
        assert caught.value.temporary


def test_proxy_whose_name_is_unknown() -> None:
    transport = Transport(proxies=choose("http://me:hush@proxy.invalid:1", {}))
    with pytest.raises(TransportError, match=r"name of the proxy proxy\.invalid:1 cannot be resolved") as caught:
        transport.request(Request(parse("http://registry.example/v2/")))
    assert caught.value.temporary and "hush" not in str(caught.value)


def test_a_connection_that_ends_in_the_tunnel(proxy: ProxyServer) -> None:
    """The proxy's "200" is not the registry's answer."""
    transport = Transport(proxies=choose(through(proxy), {}))
    with pytest.raises(TransportError) as caught:  # the backend speaks no TLS
        transport.request(Request(parse("https://registry.example/v2/"), tls=TLS(verify=False)))
    assert (caught.value.kind, caught.value.answered) == ("tls", False)


def test_environment_is_not_libcurls_to_read(
    server: FakeRegistry, proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "registry.example")
    transport = Transport(proxies=choose(through(proxy), {}))
    transport.request(Request(parse("http://registry.example/v2/")))
    assert len(proxy.asked) == 1


def test_proxy_of_hosts_toml(server: FakeRegistry, proxy: ProxyServer, trace: list[str]) -> None:
    place = Host(parse("http://mirror.example/v2"), proxy=Secret(through(proxy)))
    transport = Transport(trace=trace.append, proxies=choose(None, {}))
    blob = Registry("registry.example", "a", transport, config=HostConfig((place,)), environ={}).blob(DIGEST, SIZE)
    read(blob)
    assert [parse(asked.target).host for asked in proxy.asked] == ["mirror.example"]
    broken = place._replace(proxy=Secret("ftp://hush"))
    with pytest.raises(UsageError, match=r"hosts\.toml is not the URL of a proxy"):
        Registry("registry.example", "a", transport, config=HostConfig((broken,)), environ={})


def test_redirect_to_a_metadata_name_is_refused_behind_a_proxy_too(server: FakeRegistry, proxy: ProxyServer) -> None:
    server.default = redirect("http://169.254.169.254/latest")
    place = Host(parse("http://mirror.example/v2"), proxy=Secret(through(proxy)))
    config = HostConfig(server=place)
    blob = Registry("registry.example", "a", Transport(), config=config, environ={}).blob(DIGEST, SIZE)
    error, _ = fails(blob)
    assert "link-local" in str(error)
    assert len(proxy.asked) == 1

"""certs.d as containerd and docker have it: what is read, in which order, and what is said of a broken file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.errors import UsageError
from pyerofs.registry.hosts import Host, HostConfig, Roots, certificates, default_roots, load, parse_api_url
from pyerofs.secret import Secret

HOST = "registry.example:5000"
ALL = frozenset(("pull", "resolve", "push"))


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots((str(tmp_path / "containerd"),), (str(tmp_path / "docker"), str(tmp_path / "containers")))


def write(roots: Roots, text: str | bytes, name: str = HOST) -> Path:
    path = Path(roots.containerd[0]) / name / "hosts.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("PEM")


def urls(config: HostConfig) -> list[str]:
    return [str(host.url) for host in (*config.mirrors, config.server)]


def test_nothing_is_configured(roots: Roots) -> None:
    assert load(HOST, roots) == HostConfig()
    assert HostConfig().server == Host(None, ALL)


def test_mirrors_in_their_order(roots: Roots) -> None:
    write(
        roots,
        """
        server = "https://registry.example:5000"
        [host."https://z.example"]
        [host."http://a.example:80/"]
        [host."m.example/base"]
        [host."m.example/base".header]
        x = "y"
        [host."https://n.example/v2/"]
        [host."https://o.example/api/x"]
        override_path = true
        [host."https://p.example"]
        override_path = true
        """,
    )
    assert urls(load(HOST, roots)) == [
        "https://z.example/v2",
        "http://a.example/v2",
        "https://m.example/base/v2",
        "https://n.example/v2",
        "https://o.example/api/x",
        "https://p.example/",
        "https://registry.example:5000/v2",
    ]


def test_server_is_the_registry_itself_unless_it_is_named(roots: Roots) -> None:
    write(roots, '[host."https://m.example"]')
    assert load(HOST, roots).server.url is None


def test_docker_hub(roots: Roots) -> None:
    write(roots, 'server = "https://docker.io"', "docker.io")
    assert urls(load("docker.io", roots)) == ["https://registry-1.docker.io/v2"]


def test_every_field(roots: Roots, tmp_path: Path) -> None:
    absolute = tmp_path / "elsewhere.pem"
    path = write(
        roots,
        f"""
        capabilities = ["pull", "Resolve"]
        ca = "ca.pem"
        skip_verify = true
        client = "both.pem"
        dial_timeout = "1m1.5s"
        proxy = "http://user:hush@proxy:3128"
        [header]
        X-One = "1"
        X-Two = ["a", "b"]
        Authorization = "Basic hush"
        range = "bytes=0-1"
        Host = "elsewhere"
        [host."https://m.example"]
        ca = ["ca.pem", "{absolute}"]
        client = [["c.cert", "c.key"], ["both.pem", ""]]
        capabilities = ["pull"]
        skip_verify = false
        [host."https://n.example"]
        client = ["both.pem", "c.cert"]
        dial_timeout = "250ms"
        """,
    )
    here = path.parent
    put(absolute, *(here / name for name in ("ca.pem", "both.pem", "c.cert", "c.key")))
    config = load(HOST, roots)
    assert config.server == Host(
        None,
        frozenset(("pull", "resolve")),
        (f"{here}/ca.pem",),
        ((f"{here}/both.pem", ""),),
        False,
        (
            ("X-One", Secret("1")),
            ("X-Two", Secret("a")),
            ("X-Two", Secret("b")),
            ("Authorization", Secret("Basic hush")),
        ),
        61.5,
        Secret("http://user:hush@proxy:3128"),
    )
    assert "hush" not in repr(config)
    first, second = config.mirrors
    assert (first.ca, first.verify) == ((f"{here}/ca.pem", str(absolute)), True)
    assert first.capabilities == {"pull"}
    assert first.client == ((f"{here}/c.cert", f"{here}/c.key"), (f"{here}/both.pem", ""))
    assert second.client == ((f"{here}/both.pem", ""), (f"{here}/c.cert", ""))
    assert second.connect_timeout == 0.25


@pytest.mark.parametrize("text", ["", "0", "0s", "0ms"])
def test_no_limit(roots: Roots, text: str) -> None:
    write(roots, f'dial_timeout = "{text}"')
    assert load(HOST, roots).server.connect_timeout is None


# Which directory


def test_directories_in_order(roots: Roots) -> None:
    for name in ("_default", HOST, "registry.example_5000_"):
        write(roots, f'server = "https://{name.strip("_").replace("_", "-").replace(":", "-")}"', name)
        expected = f"https://{name.strip('_').replace('_', '-').replace(':', '-')}/v2"
        assert urls(load(HOST, roots)) == [expected]
    assert urls(load("other.example", roots)) == ["https://default/v2"]


def test_first_root_first(roots: Roots, tmp_path: Path) -> None:
    mine = Roots((str(tmp_path / "mine"), *roots.containerd), ())
    write(roots, 'server = "https://system"')
    assert urls(load(HOST, mine)) == ["https://system/v2"]
    write(mine, 'server = "https://mine"')
    assert urls(load(HOST, mine)) == ["https://mine/v2"]


@pytest.mark.parametrize("name", ["..", "../x", "/etc", ".", "", "a/b", "a\0b"])
def test_names_that_would_lead_elsewhere(roots: Roots, name: str) -> None:
    write(roots, "ca = 7", "x")
    put(Path(roots.docker[0]) / "x" / "ca.crt")
    assert load(name, roots).mirrors == ()


def test_certificates(roots: Roots) -> None:
    directory = Path(roots.docker[0]) / HOST
    put(*(directory / name for name in ("b.crt", "a.crt", "client.cert", "client.key", "alone.cert", "x.key", "x.pem")))
    expected = Host(
        ca=(f"{directory}/a.crt", f"{directory}/b.crt"),
        client=((f"{directory}/alone.cert", ""), (f"{directory}/client.cert", f"{directory}/client.key")),
    )
    assert load(HOST, roots) == HostConfig(server=expected)
    assert certificates(HOST, roots) == expected
    # podman's come after docker's
    put(Path(roots.docker[1]) / HOST / "c.crt")
    assert load(HOST, roots).server == expected


def test_certificates_in_containerds_directory(roots: Roots) -> None:
    directory = Path(roots.containerd[0]) / HOST
    put(directory / "ca.crt", Path(roots.docker[0]) / HOST / "docker.crt")
    assert load(HOST, roots).server.ca == (f"{directory}/ca.crt",)
    write(roots, " \n")
    assert load(HOST, roots).server.ca == (f"{directory}/ca.crt",)


def test_hosts_toml_before_certificates(roots: Roots) -> None:
    """Docker's count for the registry itself where hosts.toml only speaks of mirrors."""
    put(Path(roots.docker[0]) / HOST / "ca.crt", Path(roots.containerd[0]) / HOST / "mine.pem")
    write(roots, '[host."https://m.example"]')
    config = load(HOST, roots)
    assert (config.server.ca, config.mirrors[0].ca) == ((f"{roots.docker[0]}/{HOST}/ca.crt",), ())
    write(roots, 'ca = "mine.pem"')
    assert load(HOST, roots).server.ca == (f"{roots.containerd[0]}/{HOST}/mine.pem",)
    write(roots, 'server = "https://other.example"')
    assert load(HOST, roots).server.ca == ()


def test_roots() -> None:
    assert default_roots({"HOME": "/root"}, 0) == Roots()
    assert default_roots({}, 2**31 - 7) == Roots()  # whom the system does not list
    mine = default_roots({"HOME": "/home/me"}, 1000)
    assert mine.containerd == ("/home/me/.config/containerd/certs.d", "/etc/containerd/certs.d")
    assert mine.docker[:2] == ("/home/me/.config/containers/certs.d", "/home/me/.config/docker/certs.d")
    assert default_roots({"HOME": "/h", "XDG_CONFIG_HOME": "/x"}, 1).containerd[0] == "/x/containerd/certs.d"


# What is wrong


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("server = hush", "is not TOML: there is an error in line 1"),
        ('x = 1\n[host."hush"', "is not TOML"),
        ("server = 7", "server is not a string"),
        ('server = "ftp://hush"', "server is not a plain http or https URL"),
        ('server = "https://me:hush@x"', "server is not a plain http or https URL"),
        ('server = "https://x/?hush"', "server is not a plain http or https URL"),
        ('host = "hush"', 'host is written [host."URL"]'),
        ('host.hush = "hush"', "host number 1 is not a table"),
        ('[host."https://a"]\n[host."https://me:hush@b"]', "host number 2: the URL is not a plain"),
        ('capabilities = ["hush"]', "capabilities are some of"),
        ("capabilities = [7]", "capabilities is a string or a list"),
        ("ca = 7", "ca is a string or a list"),
        ("ca = [[]]", "ca is a string or a list"),
        ('ca = "none.pem"', "ca: cannot read"),
        ('ca = "."', "Is a directory"),
        ('ca = "a\\u0000b"', "contains a NUL"),
        ("client = 7", "client is a path, a list"),
        ('client = [["a"]]', "client is a path, a list"),
        ('client = [["a", 7]]', "client is a path, a list"),
        ('client = "none.pem"', "client: cannot read"),
        ('skip_verify = "hush"', "skip_verify is true or false"),
        ("override_path = 1", None),
        ('server = "https://x"\noverride_path = 1', "override_path is true or false"),
        ('header = "hush"', "header is a table"),
        ("header.x = 7", "header x is a string or a list"),
        ('header.x = "hush\\r\\ny: z"', "header x has characters"),
        ('header."x:y" = "hush"', "header has a name"),
        ('dial_timeout = "hush"', "dial_timeout is a duration"),
        ("dial_timeout = 7", "dial_timeout is a duration"),
        ('dial_timeout = "-1s"', "dial_timeout is a duration"),
        ("proxy = 7", "proxy is not a string"),
        ("a = " + "[" * 100_000, "is not TOML"),
        ("a = 1979-99-99T99:99:99", "is not TOML"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"#" * 2_000_000, "is larger than 1024 KiB"),
    ],
    ids=map(str, range(35)),
)
def test_broken_files(roots: Roots, text: str | bytes, words: str | None) -> None:
    path = write(roots, text)
    if words is None:
        load(HOST, roots)
        return
    with pytest.raises(UsageError) as caught:
        load(HOST, roots)
    assert str(path) in str(caught.value) and words in str(caught.value)
    assert "hush" not in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_what_cannot_be_read(roots: Roots) -> None:
    path = write(roots, "")
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        load(HOST, roots)
    path.rmdir()
    (path.parent / "ca.crt").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"cannot read .*ca\.crt: No such file"):
        load(HOST, roots)


WORDS = [
    "server",
    "host",
    "ca",
    "client",
    "header",
    "capabilities",
    "skip_verify",
    "dial_timeout",
    "proxy",
    "=",
    "[",
    "]",
]
WORDS += [
    '"',
    "'",
    '"""',
    "\n",
    ".",
    "{",
    "}",
    ",",
    "true",
    "7",
    "1s",
    "https://x",
    "[host.",
    "\\",
    "#",
    "\0",
    "é",
    "1979-01-01",
]


@settings(max_examples=500)
@given(st.binary() | st.lists(st.sampled_from(WORDS) | st.text(max_size=3)).map(lambda words: "".join(words).encode()))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    roots = Roots((str(tmp_path_factory.getbasetemp() / "any"),), ())
    write(roots, text)
    try:
        load(HOST, roots)
    except UsageError as error:
        assert "\n" not in str(error)


@given(st.text())
def test_any_url(text: str) -> None:
    try:
        url = parse_api_url(text)
    except ValueError:
        return
    assert url.target.endswith("/v2") and "?" not in url.target


@given(st.text())
def test_any_name(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    base = str(tmp_path_factory.getbasetemp() / "none")
    assert load(name, Roots((base,), (base,))).mirrors == ()

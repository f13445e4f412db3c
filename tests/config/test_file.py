"""The configuration file: what it says, how it and the options go together, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from pyerofs.config import file as config_file
from pyerofs.config import render
from pyerofs.config.file import load
from pyerofs.config.options import (
    ROWS,
    MountOptions,
    ReadOptions,
    chosen,
    find_row,
    is_secret,
    parse_mount_options,
    parse_oci_options,
)
from pyerofs.errors import UsageError
from pyerofs.export.file import open_export
from pyerofs.oci.location import Location
from pyerofs.oci.platforms import Platform
from pyerofs.quantity import Limit
from pyerofs.secret import Secret
from tests.support.fakeregistry import FakeRegistry
from tests.support.images import FakePusher, Layer, push_image
from tests.support.scene import Scene

DIGEST = "sha256:" + "0a" * 32
Write = Callable[..., dict[str, str]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file, and gives the environment in which it is the configuration."""

    def write(text: str, mode: int = 0o600) -> dict[str, str]:
        path = tmp_path / "config.toml"
        path.write_text(text)
        path.chmod(mode)
        return {"PYEROFS_CONFIG": str(path)}

    return write


def at(source: str) -> Location | None:
    return Location.parse(source, image=False) if source else None


def mount_options(environ: dict[str, str], *texts: str, source: str = "", fstype: str = "erofs") -> MountOptions:
    return parse_mount_options(texts, fstype, load(environ).defaults(at(source)))


def oci(environ: dict[str, str], *texts: str, source: str = "") -> ReadOptions:
    return parse_oci_options(texts, load(environ).defaults(at(source)))


# What it says


def test_every_option_can_be_written(write: Write) -> None:
    environ = write(f"""
        [oci]
        blob = "{DIGEST}"
        platform = "linux/arm64"
        username = "me"
        password = "sesame"
        insecure = true
        mirror = ["https://a.example", "https://b.example/path"]
        ca = "/etc/ca.pem"
        proxy = "http://proxy:3128"
        cache = "/var/c"
        convert = "no"
        soci = "v1"
            unpacked_max = "5G"
        connections = 4
        timeout = "2m"
        fill = "idle"
        prefetch = "/usr:/bin/sh"
        trace = "/var/trace"
        verify = "require"
        verity = "auto"
        fill_rate = "10M"
        upperdir = "/var/up"
        workdir = "/var/work"
        [cache]
        max = "20%"
        [nbd]
        attach = "ioctl"
        device = "/dev/nbd3"
        [log]
        to = "/var/log/pyerofs.log"
        level = "debug"
    """)
    expected = ReadOptions(
        blob=DIGEST,
        platform=Platform("linux", "arm64"),
        username="me",
        password=Secret("sesame"),
        insecure=True,
        mirrors=("https://a.example", "https://b.example/path"),
        ca="/etc/ca.pem",
        proxy=Secret("http://proxy:3128"),
        cache="/var/c",
        convert="no",
        soci="v1",
        unpacked_max=5 << 30,
        connections=4,
        timeout=120,
        fill="idle",
        prefetch=("/usr", "/bin/sh"),
        verify="require",
        fill_rate=10 << 20,
        cache_max=Limit(20, percent=True),
    )
    found = mount_options(environ)
    assert found.oci == expected
    assert found.upper == ("/var/up", "/var/work")
    assert found.verity == "auto"
    assert found.trace == "/var/trace"
    assert oci(environ) == expected
    assert (found.attach, found.device, found.log_to, found.log_level) == (
        "ioctl", "/dev/nbd3", "/var/log/pyerofs.log", "debug",
    )  # fmt: skip
    rest = {"oci", "oci.layer", "oci.layers", "oci.password_file"}
    assert {name for layer in load(environ).layers for name, _ in layer.values} == {row.name for row in ROWS} - rest


@pytest.mark.parametrize(("value", "seconds"), [("60", 60), ("1.5", 1.5), ('"90s"', 90), ('"2m"', 120)])
def test_a_time_is_a_number_or_a_text(write: Write, value: str, seconds: float) -> None:
    assert oci(write(f"[oci]\ntimeout = {value}")).timeout == seconds


def test_texts_are_taken_as_they_are(write: Write) -> None:
    """Nothing is escaped: what would end an option after -o is a character here."""
    environ = write("[oci]\nusername = 'a,b'\npassword = '\"x\\,'")
    found = oci(environ)
    assert found.username == "a,b"
    assert found.password == Secret('"x\\,')


def test_the_configuration_fits_a_mount_of_a_local_file_too(write: Write) -> None:
    environ = write("[oci]\nlayer = 0\ncache = '/c'\n[nbd]\nattach = 'netlink'")
    for fstype in ("erofs", "erofs.local", "erofs.fuse"):
        assert mount_options(environ, fstype=fstype).attach == "netlink"


# How it goes with what is written after -o


def test_what_is_written_wins(write: Write) -> None:
    environ = write("[oci]\ntimeout = 60\ninsecure = true\nmirror = ['https://a.example']\n[log]\nlevel = 'debug'")
    found = mount_options(environ, "oci.timeout=7,oci.insecure=no", "oci.mirror=https://b.example,log.level=error")
    assert found.oci == ReadOptions(timeout=7, insecure=False, mirrors=("https://b.example",))
    assert found.log_level == "error"


@pytest.mark.parametrize(("file", "written", "expected"), [
    (f"blob = '{DIGEST}'", "oci.layer=1", ReadOptions(layer=1)),
    (f"blob = '{DIGEST}'", "oci=1", ReadOptions(layer=1)),
    (f"blob = '{DIGEST}'", "oci", ReadOptions(blob=DIGEST)),
    ("layer = 1", f"oci.blob={DIGEST}", ReadOptions(blob=DIGEST)),
    ("username = 'a'\npassword = 'b'", "oci.username=me,oci.password_file=/p",
     ReadOptions(username="me", password_file="/p")),
])  # fmt: skip
def test_what_excludes_one_another(write: Write, file: str, written: str, expected: ReadOptions) -> None:
    assert oci(write(f"[oci]\n{file}"), written) == expected


def test_a_password_in_the_file_is_not_for_a_user_after_o(write: Write) -> None:
    with pytest.raises(UsageError, match=r"oci\.username needs a password"):
        oci(write("[oci]\nusername = 'a'\npassword = 'b'"), "oci.username=me")


# One registry's


REGISTRIES = f"""
[oci]
timeout = 60
layer = 1
[registry."quay.io".oci]
timeout = 61
[registry."localhost:5000".oci]
insecure = true
blob = '{DIGEST}'
"""


@pytest.mark.parametrize(("source", "expected"), [
    ("quay.io/org/app:1.0", ReadOptions(timeout=61, layer=1)),
    ("localhost:5000/app", ReadOptions(timeout=60, insecure=True, blob=DIGEST)),
    ("app", ReadOptions(timeout=60, layer=1)),
    ("/dev/sda", ReadOptions(timeout=60, layer=1)),
    ("", ReadOptions(timeout=60, layer=1)),
])  # fmt: skip
def test_a_registry_of_its_own(write: Write, source: str, expected: ReadOptions) -> None:
    assert oci(write(REGISTRIES), source=source) == expected


# Which files


def test_a_user_has_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, home = tmp_path / "system.toml", tmp_path / "home/pyerofs/config.toml"
    monkeypatch.setattr(config_file, "SYSTEM_FILE", str(system))
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "home"), "HOME": "/nonexistent"}
    assert load(environ, 1000).files == ((str(home), "not there"), (str(system), "not there"))
    home.parent.mkdir(parents=True)
    system.write_text("[oci]\ntimeout = 60\nlayer = 1\n[registry.'quay.io'.oci]\ncache = '/system'")
    home.write_text("[oci]\ntimeout = 61\ncache = '/home'")
    assert load(environ, 1000).files == ((str(home), "read"), (str(system), "read"))
    users = parse_oci_options([], load(environ, 1000).defaults(at("quay.io/x")))
    assert users == ReadOptions(timeout=61, layer=1, cache="/system")  # of one registry before of all
    roots = parse_oci_options([], load(environ, 0).defaults(at("app")))
    assert roots == ReadOptions(timeout=60, layer=1)
    assert load({"HOME": str(tmp_path)}, 1000).files[0][0] == f"{tmp_path}/.config/pyerofs/config.toml"
    assert load({}, 2**31 - 7).files == ((str(system), "read"),)  # whom the system does not list


def test_root_s_own_file_is_no_trouble_for_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert load({}, 2**31 - 7).files == (("/etc/pyerofs/config.toml", "not for this user"),)
    for environ, uid in (({}, 0), ({"PYEROFS_CONFIG": "/x"}, 1000)):
        with pytest.raises(UsageError, match=r"cannot read .*: Permission denied"):
            load(environ, uid)


def test_a_file_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"PYEROFS_CONFIG: cannot read .*/none: No such file"):
        load({"PYEROFS_CONFIG": str(tmp_path / "none")})
    assert load({"PYEROFS_CONFIG": ""}) == config_file.Config()
    assert load({"PYEROFS_CONFIG": "/dev/null"}).layers[0].values == ()


# What is wrong with it


@pytest.mark.parametrize(("text", "message"), [
    ("[oci]\ntimout = 1", "unknown option 'oci.timout': did you mean oci.timeout?"),
    ("[occi]\ntimeout = 1", "unknown option 'occi.timeout': did you mean oci.timeout?"),
    ("[oci.more]\ntimeout = 1", "unknown option"),
    ("timeout = 1", "'timeout' is not a key: write it in a section, as in [oci]"),
    ("oci = 1", "'oci' is not a key"),
    ("[oci]\ntimeout = [1]", "oci.timeout must be a number, or a text with a unit in quotes"),
    ("[oci]\ntimeout = true", "oci.timeout must be a number"),
    ("[oci]\ntimeout = 0", "oci.timeout='0': a time above 0"),
    ("[oci]\nlayer = '1'", "oci.layer must be a whole number"),
    ("[oci]\nlayer = true", "oci.layer must be a whole number"),
    ("[oci]\nlayer = 1.5", "oci.layer must be a whole number"),
    ("[oci]\ninsecure = 'yes'", "oci.insecure must be true or false"),
    ("[oci]\ncache = 1", "oci.cache must be an absolute path in quotes"),
    ("[oci]\ncache = 'here'", "oci.cache must be an absolute path"),
    ("[oci]\ncache = ''", "oci.cache must be an absolute path"),
    ("[oci]\nmirror = 1", "oci.mirror must be a list of texts"),
    ("[oci]\nmirror = ['https://a.example', 1]", "oci.mirror must be a list of texts"),
    ("[oci]\nmirror = ['sesame@x']", "oci.mirror: the URL of a mirror is"),
    ("[oci]\nusername = 'a'", "oci.username needs a password"),
    ("[oci]\npassword = 'sesame'", "a password needs a user"),
    ("[oci]\nusername = 'a'\npassword = 1", "oci.password must be a text"),
    (f"[oci]\nlayer = 1\nblob = '{DIGEST}'", "oci.layer and oci.blob exclude each other"),
    ("[cache]\nmax = 0", "cache.max='0': it must be a size such as 20G"),
    ("[nbd]\ndevice = '/dev/sda'", "such as /dev/nbd0"),
    ("[log]\nlevel = 'loud'", "log.level='loud': it must be one of debug, info, warning, error"),
    ("[log]\nto = 'here'", "log.to='here': it must be one of auto, journal, syslog, stderr, or the absolute path"),
    ("registry = 1", 'registry is not a table: write [registry."HOST".oci]'),
    ("[registry]\n'quay.io' = 1", 'registry."quay.io" is not a table'),
    ("[registry.'quay.io'.oci]\ntimout = 1", '[registry."quay.io"] unknown option \'oci.timout\''),
    ("[registry.'quay.io'.log]\nlevel = 'debug'", "log.level cannot be set for one registry alone"),
    ("[oci]\npassword = sesame", "is not TOML: there is an error in line 2"),
    ("\ufeff\x00", "is not TOML"),
    ("#" * (1 << 20) + "#", "is larger than 1024 KiB"),
])  # fmt: skip
def test_refused(write: Write, text: str, message: str) -> None:
    environ = write(text)
    with pytest.raises(UsageError) as caught:
        load(environ)
    said = str(caught.value)
    assert message in said
    assert environ["PYEROFS_CONFIG"] in said
    assert "sesame" not in said
    assert "\n" not in said


def test_a_file_that_is_no_text(write: Write) -> None:
    environ = write("")
    Path(environ["PYEROFS_CONFIG"]).write_bytes(b"\xff")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        load(environ)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
@pytest.mark.parametrize("text", [
    "[oci]\nusername = 'a'\npassword = 'sesame'", "[oci]\nproxy = 'http://me:sesame@proxy'",
    "[registry.'quay.io'.oci]\nusername = 'a'\npassword = 'sesame'",
])  # fmt: skip
def test_a_secret_that_others_may_read(write: Write, text: str, mode: int) -> None:
    with pytest.raises(UsageError, match=r"is a secret, and others may read the file: chmod 600") as caught:
        load(write(text, mode))
    assert "sesame" not in str(caught.value)
    assert load(write(text, 0o400))


def test_what_is_no_secret_may_be_read(write: Write) -> None:
    assert load(write("[oci]\nproxy = 'http://proxy:3128'\nusername = 'a'\npassword_file = '/p'", 0o644)).layers
    assert not is_secret("oci.proxy", "http://proxy")
    assert is_secret("oci.password", "")


# PYEROFS_LOG


@pytest.mark.parametrize(("text", "expected"), [
    ("", ("stderr", "warning")), ("debug", ("stderr", "debug")), ("/l", ("/l", "warning")),
    ("/l,error", ("/l", "error")), ("info,journal", ("journal", "info")),
])  # fmt: skip
def test_the_variable_is_before_the_file(write: Write, text: str, expected: tuple[str, str]) -> None:
    environ = write("[log]\nto = 'stderr'\nlevel = 'warning'") | {"PYEROFS_LOG": text}
    found = mount_options(environ)
    assert (found.log_to, found.log_level) == expected
    assert mount_options(environ, "log.to=syslog").log_to == "syslog"


def test_the_variable_can_be_wrong() -> None:
    with pytest.raises(UsageError, match=r"PYEROFS_LOG: log\.to='loud'"):
        load({"PYEROFS_CONFIG": "", "PYEROFS_LOG": "loud"})


# For a record


def test_without_secrets_it_still_makes_sense(write: Write) -> None:
    environ = write(
        "[oci]\nusername = 'a'\npassword = 'sesame'\nproxy = 'http://me:sesame@p'\ntimeout = 5\n"
        "[registry.'quay.io'.oci]\nusername = 'b'\npassword_file = '/p'\nproxy = 'http://p'"
    )
    defaults = load(environ).defaults(at("quay.io/app"))
    kept = config_file.without_secrets(defaults)
    assert "sesame" in str(defaults)
    assert "sesame" not in str(kept)
    assert kept[1] == [("oci.timeout", "5")]
    assert parse_oci_options([], kept) == parse_oci_options([], defaults)  # which the other section has overridden
    everywhere = load(environ).defaults(at("app"))
    assert parse_oci_options([], config_file.without_secrets(everywhere)) == ReadOptions(timeout=5)
    assert parse_oci_options([], [*config_file.without_secrets(everywhere), *everywhere]) == parse_oci_options(
        [], everywhere
    )


# For people


def test_what_counts_and_why(write: Write) -> None:
    environ = write(REGISTRIES + "\n[log]\nto = 'syslog'") | {"PYEROFS_LOG": "debug"}
    path = environ["PYEROFS_CONFIG"]
    lines = render.render(load(environ), at("localhost:5000/app")).splitlines()
    assert lines[0] == f"# {path}: read"
    assert f'blob = "{DIGEST}"  # {path} [registry."localhost:5000"]' in lines
    assert f"timeout = 60  # {path}" in lines
    assert "# layer: not set" in lines  # the blob has taken its place
    assert "connections = 1  # default" in lines
    assert 'level = "debug"  # PYEROFS_LOG' in lines
    assert f'to = "syslog"  # {path}' in lines
    assert len([line for line in lines if line and line[0] != "["]) == 1 + len(ROWS) - 1  # not `oci` itself


def test_secrets_are_not_shown_and_the_rest_is_toml(write: Write, tmp_path: Path) -> None:
    environ = write(
        "[oci]\nusername = '''a\"\\'''\npassword = 'sesame'\nproxy = 'http://me:sesame@p'\n"
        "mirror = ['https://a.example', 'https://b.example']"
    )
    text = render.render(load(environ))
    assert "sesame" not in text
    assert tomllib.loads(text)["oci"] == {
        "username": 'a"\\',
        "password": "***",
        "proxy": "***",
        "mirror": ["https://a.example", "https://b.example"],
        "insecure": False,
        "connections": 1,
        "timeout": 120,
        "fill": "none",
        "prefetch": "auto",
        "convert": "auto",
        "soci": "auto",
        "verify": "auto",
        "verity": "none",
    }


def test_the_example_names_every_option_and_its_default(write: Write) -> None:
    text = render.example()
    assert load(write(text)).layers[0].values == ()
    for row in ROWS:
        if "." in row.name:
            assert f"\n# {row.text}\n#{row.name.partition('.')[2]} = " in text
    # Those that have a default are good as they are.
    defaults = [line[1:] if "=" in line and not any(c.isupper() for c in line) else line for line in text.splitlines()]
    written = load(write("\n".join(line for line in defaults if not line.startswith("#")))).layers[0]
    given = {field: value for field, (value, _) in chosen((), [written.values]).items()}
    assert {"timeout", "connections", "insecure", "fill", "attach", "log_to", "log_level"} <= given.keys()
    for field, value in given.items():
        home = ReadOptions() if field in {f.name for f in dataclasses.fields(ReadOptions)} else MountOptions()
        assert getattr(home, field) == value
    assert find_row("oci.timeout").name == "oci.timeout"


# Where options are read


def test_python_calls_and_commands_follow_it(
    scene: Scene, fake: FakeRegistry, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_image(FakePusher(fake), "app", "1", [Layer(b"x" * 10000), Layer(b"y" * 10000)])
    environ = write(f"[oci]\ncache = '{scene.cache}'\n[registry.'{fake.host}'.oci]\nlayer = 1\ntimeout = 5")
    monkeypatch.setenv("PYEROFS_CONFIG", environ["PYEROFS_CONFIG"])
    export = open_export(f"{fake.host}/app:1")
    assert (export.source.layer, export.timeout) == (1, 5)
    export.close()
    assert (scene.cache / "sha256").is_dir()
    assert scene.run("read", "--length=1", f"{fake.host}/app:1", env=environ).out == "y"
    assert scene.run("read", "--length=1", "-o", "oci=0", f"{fake.host}/app:1", env=environ).out == "x"
    os.chmod(environ["PYEROFS_CONFIG"], 0o600)
    Path(environ["PYEROFS_CONFIG"]).write_text("[oci]\nplatfrom = 'x'")
    for arguments in (["read", "x"], ["inspect", "x"], ["mount", "x", str(scene.mnt)]):
        done = scene.run(*arguments, env=environ)
        assert done.status == 1
        assert "did you mean oci.platform?" in done.error


def test_the_command(scene: Scene, write: Write) -> None:
    environ = write(REGISTRIES)
    for image, timeout in (([], 60), (["quay.io/app"], 61), (["/dev/sda"], 60)):
        done = scene.run("config", *image, env=environ)
        assert (done.status, done.err) == (0, "")
        assert f"timeout = {timeout}  " in done.out
    assert scene.run("config", "--example", env=environ).out == render.example() + "\n"
    done = scene.run("config", env=write("[oci]\ntimout = 1"))
    assert (done.status, done.out) == (1, "")
    assert "did you mean oci.timeout?" in done.error

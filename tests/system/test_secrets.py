"""No secret where it does not belong: outputs at every level of talk, errors, the process list, environments, files.

Every secret in here has "hush" in it, in one spelling or the other.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pyerofs.daemon import record
from pyerofs.daemon.messages import MountRequest
from tests.support.fakeregistry import FakeRegistry, redirect, stall, status
from tests.support.images import FakePusher, Layer, push_image
from tests.support.needs import need_root
from tests.support.proxyserver import ProxyServer
from tests.support.scene import Done, Scene, until

DATA = bytes(1024) + (0xE0F5E1E2).to_bytes(4, "little") + bytes(8) + b"\x0c" + bytes(200_000)
BASIC = base64.b64encode(b"me:hush").decode()
SECRETS = [b"hush", BASIC.encode(), b"token-", base64.b64encode(b"puser:phush")]


def show(text: bytes) -> list[bytes]:
    return [secret for secret in SECRETS if secret in text]


def clean(done: Done) -> Done:
    assert show(f"{done.out}{done.err}".encode()) == []
    return done


@pytest.fixture
def image(fake: FakeRegistry) -> str:
    push_image(FakePusher(fake), "app", "1", [Layer(DATA)])
    return f"{fake.host}/app:1"


@pytest.fixture
def docker(scene: Scene, fake: FakeRegistry) -> None:
    (scene.directory / "docker").mkdir()
    config = {"auths": {fake.host: {"auth": BASIC}}}
    (scene.directory / "docker" / "config.json").write_text(json.dumps(config))


def read(scene: Scene, image: str, *options: str, verbosity: str = "-vv", **environment: str) -> Done:
    given = ",".join(["oci=0", f"oci.cache={scene.cache}", *options])
    # What is read is nothing that a person wrote; here it is only in the way.
    command = ("sh", "-c", '"$@" | wc -c', "sh")
    return scene.run("read", verbosity, "-o", given, image, env=environment, prefix=command)


@pytest.mark.parametrize("verbosity", ["-q", "-v", "-vv", "-vvvv"])
@pytest.mark.parametrize("way", ["options", "docker"])
def test_what_is_said_when_all_is_well(
    scene: Scene, fake: FakeRegistry, image: str, way: str, verbosity: str, request: pytest.FixtureRequest
) -> None:
    """Basic at the token server, Bearer at the registry, and a presigned link: everything that could be told."""
    if way == "docker":
        request.getfixturevalue("docker")
    fake.token_uses, fake.basic = 100, ("me", "hush")
    fake.script(redirect("{path}?X-Amz-Signature=hush&X-Amz-Credential=hush"))
    options = ("oci.username=me", "oci.password=hush") if way == "options" else ()
    done = clean(read(scene, image, *options, verbosity=verbosity))
    assert (done.status, done.out) == (0, f"{len(DATA)}\n")
    assert any("X-Amz-Signature=hush" in seen.path for seen in fake.seen)
    if verbosity == "-vv":
        assert "/token" in done.err and "-> 307" in done.err
    clean(scene.run("inspect", verbosity, "--json", "-o", ",".join([*options, "oci=0"]), image))


@pytest.mark.parametrize("code", [400, 401, 403, 404, 500])
def test_what_is_said_when_the_password_is_wrong(scene: Scene, fake: FakeRegistry, image: str, code: int) -> None:
    fake.token_uses, fake.basic = 100, ("me", "other")
    body = json.dumps({"details": f"no {BASIC} hush"}).encode()  # a server that repeats what it got
    fake.token_behaviour = status(code, body=body)
    fake.refusal_status = 401
    done = read(scene, image, "oci.username=me", "oci.password=hush", "oci.timeout=1")
    assert "refused" not in done.err and fake.requests("/token")
    assert b"hush" not in done.err.encode()
    assert BASIC not in done.err


def test_proxy(scene: Scene, fake: FakeRegistry, image: str) -> None:
    with ProxyServer(fake.host, ("puser", "phush")) as proxy:
        good = f"http://puser:phush@{proxy.host}"
        done = clean(read(scene, image, f"oci.proxy={good}"))
        assert done.status == 0 and f" via {proxy.host} -> " in done.err
        clean(read(scene, image, f"oci.proxy=http://puser:wronghush@{proxy.host}", "oci.timeout=1"))
        done = clean(read(scene, "registry.invalid/app:1", "oci.timeout=1", https_proxy=good, http_proxy=good))
        assert f" via {proxy.host} -> " in done.err
    clean(read(scene, image, "oci.proxy=ftp://puser:phush@x"))
    clean(read(scene, image, "oci.proxy=http://puser:phush@x:1", "oci.proxy=http://puser:phush@x:2"))
    clean(read(scene, image, "oci.mirror=http://puser:phush@x"))


def about(pid: int) -> bytes:
    """What every user, and what root, can see of a process."""
    base = Path(f"/proc/{pid}")
    return (base / "cmdline").read_bytes() + b"\0" + (base / "environ").read_bytes()


@pytest.mark.parametrize("quoting", ["{}", '"{},xyzzy"'], ids=["plain", "quoted"])
def test_process_list(scene: Scene, fake: FakeRegistry, image: str, quoting: str) -> None:
    """A mount, at the moment when all of its processes are there; nothing of it needs a kernel that mounts."""
    need_root()
    release, reached = threading.Event(), threading.Event()
    fake.default = stall(release, 0, reached)
    options = [f"oci.cache={scene.cache}", "oci=0", "oci.username=me"]
    options += ["oci.password=" + quoting.format("hush"), f"oci.proxy=http://puser:phush@{fake.host}"]
    fake_proxy = ProxyServer(fake.host, ("puser", "phush"))
    with fake_proxy as proxy:
        options[-1] = f"oci.proxy=http://puser:phush@{proxy.host}"
        process = scene.start("mount", "-vv", "-t", "erofs.nbd", "-o", ",".join(options), image, str(scene.mnt))
        assert reached.wait(30)
        pids = {process.pid, *scene.processes()}
        assert len(pids) == 2, scene.processes()  # the caller and the daemon
        shown = {pid: about(pid) for pid in pids}
        process.terminate()
        release.set()
        out, err = process.communicate(timeout=30)
    for text in (*shown.values(), out.encode(), err.encode()):
        assert show(text) == []
        assert b"xyzzy" not in text
    scene.nothing_left()


def test_credential_helpers(scene: Scene, fake: FakeRegistry, image: str, tmp_path: Path) -> None:
    """The helper's environment is ours as it was, its complaints stay its own, what it keeps is sent and not shown."""
    (tmp_path / "bin").mkdir()
    helper = tmp_path / "bin" / "docker-credential-keep"
    helper.write_text(
        f"#!/bin/sh\ncat /proc/$$/environ > {tmp_path}/environ\ncat /proc/$$/cmdline > {tmp_path}/args\n"
        'echo hush >&2\necho \'{"Username":"me","Secret":"hush"}\'\n'
    )
    helper.chmod(0o755)
    (scene.directory / "docker").mkdir()
    (scene.directory / "docker" / "config.json").write_text(json.dumps({"credsStore": "keep"}))
    fake.basic = ("me", "hush")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = clean(read(scene, image, PATH=path))
    assert done.status == 0
    assert show((tmp_path / "environ").read_bytes() + (tmp_path / "args").read_bytes()) == []
    helper.write_text("#!/bin/sh\necho it is hush-0123456789012345678901234567890\nexit 1\n")
    done = clean(scene.run("inspect", "-v", "-o", "oci.timeout=1", image, env={"PATH": path}))
    assert done.status == 32 and "docker-credential-keep failed" in done.err


def test_files_are_the_users_alone(scene: Scene, fake: FakeRegistry, image: str) -> None:
    os.umask(old := os.umask(0))
    try:
        os.umask(0)
        assert read(scene, image).status == 0
    finally:
        os.umask(old)
    for path in (scene.cache, *scene.cache.rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


def test_records_hold_none() -> None:
    """A record keeps what a daemon is asked, for a successor that is started by hand, but nothing secret of it."""
    values = {
        "source": "r/app:1",
        "fstype": "erofs",
        "driver": "nbd",
        "target": "/mnt",
        "options": ["oci=0,oci.username=me,oci.password=s3cret\\,s3cret", "oci.proxy=http://me:s3cret@proxy"],
        "environment": {
            "HOME": "/root",
            "https_proxy": "http://me:s3cret@p",
            "TOKEN": "s3cret",
            "http_proxy": "http://p",
        },
        "defaults": [[("oci.username", "me"), ("oci.password", "s3cret"), ("oci.timeout", "5")]],
        "verbosity": 2,
    }
    request = MountRequest.from_json(values)
    kept, dropped = request.without_secrets()
    assert dropped
    assert "s3cret" not in json.dumps(kept.to_json())
    assert kept.options == ["oci=0", "oci.username=me"]
    assert kept.defaults == [[("oci.timeout", "5")]]
    assert kept.environment == {"HOME": "/root", "http_proxy": "http://p"}
    plain = replace(request, options=["oci=0,oci.proxy=http://proxy"], environment={}, defaults=[])
    assert plain.without_secrets() == (replace(plain, options=["oci=0", "oci.proxy=http://proxy"], verbosity=0), False)


@pytest.fixture
def sources() -> Iterator[list[Path]]:
    yield sorted(Path(record.__file__).parents[1].rglob("*.py"))


def test_curl_is_never_asked_to_talk(sources: list[Path]) -> None:
    """libcurl's own trace has every header in it; ours is written by http/exchange.py."""
    for path in sources:
        assert not re.search(r"pycurl\.(VERBOSE|DEBUGFUNCTION|STDERR)", path.read_text()), path


def test_children_are_few(sources: list[Path]) -> None:
    """Who starts processes, so that a new one is looked at here."""
    starts = re.compile(r"subprocess\.(run|Popen)|posix_spawn|os\.(fork|exec|system)")
    assert {f"{path.parent.name}/{path.stem}" for path in sources if starts.search(path.read_text())} == {
        "daemon/launch",
        "pyerofs/program",
    }


def test_the_test_would_notice() -> None:
    done = subprocess.run(["printf", "%s", f"x {BASIC}"], capture_output=True, check=True)
    assert show(done.stdout) == [BASIC.encode()]


def test_no_leftover(scene: Scene, fake: FakeRegistry, image: str) -> None:
    """A caller that is killed while its daemon resolves the image takes the daemon along, with the secrets it got."""
    need_root()
    release, reached = threading.Event(), threading.Event()
    fake.default = stall(release, 0, reached)
    options = f"oci.cache={scene.cache},oci=0,oci.username=me,oci.password=hush"
    process = scene.start("mount", "-t", "erofs.nbd", "-o", options, image, str(scene.mnt))
    assert reached.wait(30)
    assert len(scene.processes()) == 2  # the caller and the daemon
    process.kill()
    process.communicate(timeout=30)
    until(lambda: not scene.processes(), "that nothing runs")
    release.set()

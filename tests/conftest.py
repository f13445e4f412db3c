"""Fixtures of the end-to-end tests: a tree, its images, a real registry that holds them, and a stage for each test.

They serve the tests in the guest too (tests/guest), with a smaller tree.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.fakeregistry import FakeRegistry
from tests.support.guestrun import GuestRuns
from tests.support.images import EROFS, TAR, Images, Layer, Published, push_image, push_index
from tests.support.needs import need, need_root
from tests.support.realregistry import LoggingRegistry
from tests.support.scene import Scene
from tests.support.trees import MIB, Tree, make_image, make_tree

if TYPE_CHECKING:
    from tests.support.blobs import Rig

os.environ["PYEROFS_CONFIG"] = ""  # whatever the machine's owner has configured is no matter of the tests'
GUEST = bool(os.environ.get("PYEROFS_GUEST"))
BESIDE_OTHERS = "PYTEST_XDIST_WORKER" in os.environ

if not GUEST:
    import hypothesis

    hypothesis.settings.register_profile("slow machines are no bug", deadline=None)
    hypothesis.settings.load_profile("slow machines are no bug")


# What `make unit` leaves out, beside tests that are marked: tests that mount, need root or programs of Debian, or are
# slow.
SYSTEM_FIXTURES = {"tree", "images", "published", "nbdfuse"}
SYSTEM = (
    "bundle/test_bundle.py", "docker/", "fleet/", "podman/",
    "csi/test_driver.py::test_a_secret_opens", "snapshotter/test_config_file.py::test_containerd_reads",
    "system/", "guest/", "images/", "export/test_uncached.py", "house/test_packaging.py", "kernel/test_loop.py",
    "kernel/test_mountpoint.py", "kernel/test_overlay.py", "mounting/test_mount.py", "mounting/test_present.py",
    "cli/test_files.py", "cli/test_main.py::test_a_password_is_wiped", "cli/test_main.py::test_inspect_of_what_is_not",
    "core/test_core_watch.py::test_where_the_kernel_does_not_say",
    "daemon/test_log.py::test_a_journal", "daemon/test_log.py::test_journal", "daemon/test_log.py::test_syslog",
    "daemon/test_served_layer.py", "erofs/test_dmverity.py", "export/test_serve.py", "http/test_proxy.py::test_tls",
    "http/test_tls.py::test_both",
    "http/test_transport.py::test_tls", "http/test_transport.py::test_system",
    "kernel/test_dmverity.py", "kernel/test_nbd.py::test_not_root", "registry/test_client.py::test_https",
    "registry/test_client.py::test_loopback", "registry/test_upload.py::test_real",
    # slow
    "core/test_core_store.py::test_an_outage", "core/test_core_watch.py::test_what_somebody_else",
    "cache/test_manifests.py::test_a_registry_that_breaks_off", "cache/test_manifests.py::test_an_index_whose",
    "registry/test_credentials.py::test_any_config", "registry/test_upload.py::test_it_gives_up",
    "source/test_verified.py::test_every_place",
)  # fmt: skip


def _is_system(item: pytest.Item) -> bool:
    name = item.nodeid.removeprefix("tests/")
    return name.startswith(SYSTEM) or not SYSTEM_FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))


def pytest_configure(config: pytest.Config) -> None:
    """What is started by nohup or in the background ignores SIGINT, and so would the commands that tests interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "system: needs root, a kernel that mounts, or programs of Debian; or is slow")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in filter(_is_system, items):
        item.add_marker(pytest.mark.system)
    items.sort(key=_turn_beside_others if BESIDE_OTHERS else _is_of_the_guest)


def _is_of_the_guest(item: pytest.Item) -> bool:
    return "guest_test" in getattr(item, "fixturenames", ())


def _turn_beside_others(item: pytest.Item) -> int:
    """A process of pytest-xdist waits for the guest while the others go on; then what takes long, by whole files."""
    return 0 if _is_of_the_guest(item) else 1 if item.nodeid.startswith("tests/system/") else 2


@pytest.fixture(scope="session", autouse=True)
def guest_run(request: pytest.FixtureRequest) -> Iterator[GuestRuns | None]:
    """The guest, started before the first test where any of its tests is selected."""
    chosen = [
        str(item.callspec.params["guest_test"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and _is_of_the_guest(item)
    ]
    if not chosen:
        yield None
        return
    run = GuestRuns(chosen)
    if not BESIDE_OTHERS:  # each process of pytest-xdist has all tests here, and one of them runs these
        run.start()
    yield run
    run.end()


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory on a filesystem that takes every kind of file and xattr."""
    if GUEST:
        return Path("/run/pyerofs-tests")  # vm_init.sh's; the guest's /tmp is the host's
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def tree(work: Path) -> Tree:
    need_root()
    large, many = (2 * MIB + 5, 200) if GUEST else (33 * MIB + 5, 2000)
    return make_tree(work / "tree", large=large, many=many)


@pytest.fixture(scope="session")
def images(work: Path, tree: Tree) -> Images:
    other = work / "other"
    other.mkdir()
    (other / "other").write_bytes(b"another tree\n")
    return Images(
        plain=make_image(tree.root, work / "plain.erofs"),
        lz4=make_image(tree.root, work / "lz4.erofs", "-zlz4"),
        other=make_image(other, work / "other.erofs"),
    )


@pytest.fixture(scope="session")
def registry(work: Path) -> Iterator[LoggingRegistry]:
    need("docker-registry", "docker-registry")
    with LoggingRegistry(work / "registry") as registry:
        yield registry


@pytest.fixture(scope="session")
def published(registry: LoggingRegistry, images: Images) -> Published:
    plain, other = Layer(images.plain), Layer(images.other)
    one = push_image(registry, "app", "plain", [plain])
    lz4 = push_image(registry, "app", "lz4", [Layer(images.lz4)])
    push_image(registry, "nested/app", "two", [other, plain])
    push_image(registry, "app", "tar", [Layer(b"\0" * 10240, TAR)])
    push_image(registry, "app", "liar", [Layer(b"no superblock" * 1000, EROFS)])
    push_image(registry, "app", "cut", [Layer(images.plain.read_bytes()[: images.plain.stat().st_size // 2])])
    push_image(registry, "app", "short", [Layer(images.other.read_bytes(), size=images.other.stat().st_size + 4096)])
    arm = push_image(registry, "app", None, [other], platform="linux/arm64/v8")
    windows = {**lz4, "platform": {"os": "windows", "architecture": "amd64"}}
    push_index(registry, "app", "of_platforms", [arm, one, windows])
    names = ("plain", "lz4", "of_platforms", "tar", "liar", "cut", "short")
    references = {name: f"{registry.host}/app:{name}" for name in names}
    return Published(two=f"{registry.host}/nested/app:two", **references)


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def rig(fake: FakeRegistry, tmp_path: Path) -> Iterator[Rig]:
    """Blobs of the fake registry; what is said of them is one line for each thing."""
    from tests.support.blobs import Rig  # deferred: the guest's tests do without it

    found = Rig(fake, tmp_path)
    yield found
    found.check_log()


@pytest.fixture
def scene(tmp_path: Path, work: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    directory = tmp_path
    if GUEST:
        directory = work / f"{request.module.__name__}-{request.node.name}".replace("/", "_")
        directory.mkdir()
    scene = Scene(directory)
    try:
        yield scene
    finally:
        scene.clean()


@pytest.fixture
def nbdfuse() -> None:
    need("nbdfuse", "libnbd-bin")

"""docs/mounting.md under a real systemd: each command, fstab line and unit of it; and what mount(8)'s helpers say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.container import run_in_container
from tests.support.docpages import Block, blocks
from tests.support.images import Published
from tests.support.scene import Scene

pytestmark = pytest.mark.usefixtures("nbdfuse")

PAGE = "mounting.md"


def put(block: Block, published: Published) -> str:
    """As the reader does, with images that there are."""
    text = block.text.replace("quay.io/org/app:1.0", published.plain).replace("quay.io/org/other:1.0", published.two)
    if block.kind == "fstab":
        return f"cat >>/etc/fstab <<'EOF'\n{text}EOF\n"
    return text


def test_every_command_of_the_page(tmp_path: Path, published: Published) -> None:
    """In the page's order, in one machine; after each step what it promises is looked at."""
    found = blocks(PAGE)
    units = {block.name: put(block, published) for block in found if block.kind == "ini"}
    # Where systemd looks for programs, as after an installation.
    lines = ["set -x", "mkdir -p /srv/app", 'ln -sf "$(command -v pyerofs)" /usr/local/bin/pyerofs']
    for block in found:
        if block.kind in ("sh", "fstab"):
            lines.append(put(block, published))
        lines.append("timeout 60 sh -c 'while grep -q pyerofs- /proc/self/mountinfo; do sleep 0.02; done'")
    lines += [
        "systemctl start srv-app.mount",
        f'[ "$(findmnt -no SOURCE /srv/app)" = {published.plain} ]',
        f'[ "$(df --output=source /srv/app | tail -n1)" = {published.plain} ]',
        "cmp /srv/app/hello <(echo 'hello, world')",
        "systemctl stop srv-app.mount",
        "timeout 60 sh -c \"while pgrep -f '[p]yerofs.daemon|[n]bdfuse --'; do sleep 0.02; done\"",
    ]
    ended = run_in_container(tmp_path, "\n".join(lines), units)
    assert ended.status == 0, ended.out
    assert "already mounted" in ended.out


def test_units_of_the_page_are_sound(tmp_path: Path, published: Published) -> None:
    paths = []
    for block in blocks(PAGE):
        if block.kind == "ini":
            paths.append(tmp_path / block.name)
            paths[-1].write_text(put(block, published).replace("/usr/bin/env pyerofs", "/bin/true"))
    assert len(paths) == 4
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", *paths], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


# The helpers themselves


def helper(scene: Scene, fstype: str, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [Path(sys.executable).parent / f"mount.{fstype}", *arguments],
        env=scene.environment, cwd=scene.directory, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_a_helper_is_silent_about_rw(scene: Scene, published: Published) -> None:
    mnt = str(scene.mnt)
    options = f"rw,_netdev,nofail,oci.cache={scene.cache}"
    assert helper(scene, "erofs.fuse", published.plain, mnt, "-n", "-s", "-o", options, "-t", "erofs.fuse") == (0, "")
    status, said = helper(scene, "erofs.oci", published.plain, mnt, "-o", options)
    assert (status, said) == (0, f"pyerofs: {published.plain} is already mounted on {mnt}\n")
    assert scene.run("umount", mnt).status == 0
    scene.nothing_left()


@pytest.mark.parametrize(("arguments", "status", "said"), [
    (["quay.io/a/b"], 1, "usage: mount.erofs.oci SOURCE TARGET"),
    (["-x", "quay.io/a/b", "."], 1, "option -x not recognized: usage: mount.erofs.oci"),
    (["-f", "-o", "oci.platfrm=a/b", "quay.io/a/b", "."], 1, "did you mean oci.platform?"),
    (["-f", "-o", "rw", "quay.io/a/b", "nowhere"], 1, "mount point nowhere: No such file or directory"),
    (["-f", "-o", "rw", "quay.io/a/b", "."], 0, ""),
    (["-N", "/nowhere", "quay.io/a/b", "."], 1, "cannot enter the mount namespace /nowhere"),
])  # fmt: skip
def test_a_helper_checks_first(scene: Scene, arguments: list[str], status: int, said: str) -> None:
    found, error = helper(scene, "erofs.oci", *arguments)
    assert (found, said in error, error.count("\n")) == (status, True, 1 if status else 0)


def test_a_helper_mounts_in_another_namespace(scene: Scene, published: Published) -> None:
    """-N: mount(8)'s own way into a container."""
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", "echo ready; read -r _; umount -l \"$0\"; exit 0", scene.mnt],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        assert other.stdout is not None and other.stdout.readline() == b"ready\n"
        mounted = helper(
            scene, "erofs.fuse", published.plain, str(scene.mnt),
            "-N", str(other.pid), "-o", f"oci.cache={scene.cache}",
        )  # fmt: skip
        assert mounted == (0, "")
        assert not scene.mnt.is_mount()
        assert Path(f"/proc/{other.pid}/root{scene.mnt}/hello").read_bytes() == b"hello, world\n"
    scene.nothing_left()

"""Typical mistakes: what was typed, and the one line that ends each. The table is docs/troubleshooting.md's, too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.images import Published
from tests.support.ordinary import Layout, file
from tests.support.scene import Scene
from tests.support.tarballs import archive
from tests.support.trees import make_image

# Words of the command line; what its one line of error says (or a part of that); the exit status.
# IMAGE, LAYOUT, DIR, ARCHIVE are here, REGISTRY is a real one with nested/app:two and app:plain, CLOSED is a port that
# nobody listens at.
TABLE = [
    ("", "a command is missing: `pyerofs --help` lists them", 1),
    ("mout IMAGE mnt", "there is no command 'mout': did you mean mount?", 1),
    ("unmount mnt", "there is no command 'unmount': it is `pyerofs umount`", 1),
    ("login quay.io", "there is no command 'login': credentials come from `docker login` or `podman login`", 1),
    ("run app", "there is no command 'run': pyerofs runs nothing: `pyerofs mount` shows an image's files", 1),
    ("cache list", "there is no action 'list': did you mean ls?", 1),
    ("cache", "an action is missing: `pyerofs cache --help` lists them", 1),
    ("mount", "mount needs a SOURCE and a TARGET (see `pyerofs mount --help`)", 1),
    ("mount IMAGE", "mount needs a SOURCE and a TARGET (see `pyerofs mount --help`)", 1),
    ("mount IMAGE mnt more", "too many arguments, from 'more' on (see `pyerofs mount --help`)", 1),
    ("mount --platform linux/arm64 a mnt", "there is no --platform: write -o oci.platform=...", 1),
    ("ls --insecure a", "there is no --insecure: write -o oci.insecure=...", 1),
    ("list --jsno", "there is no --jsno of `pyerofs list`: did you mean --json?", 1),
    ("mount -o username=x,password=y a mnt", "unknown option 'username': did you mean oci.username?", 1),
    ("mount -o platform=linux/arm64 a mnt", "unknown option 'platform': did you mean oci.platform?", 1),
    ("mount -o oci.platfrom=a/b a mnt", "unknown option 'oci.platfrom': did you mean oci.platform?", 1),
    ("mount -o oci.platform=arm64 a mnt", "'arm64' is not a platform: write OS/ARCHITECTURE[/VARIANT], for example", 1),
    ("mount -o oci.username=x a mnt", "oci.username needs a password: add oci.password_file= or oci.password=", 1),
    ("mount -o oci.fill=yes a mnt", "oci.fill='yes': it must be one of none, idle, full", 1),
    ("mount -o oci.timeout=5x a mnt", "oci.timeout='5x': a time above 0 is needed, in seconds, or with the unit", 1),
    ("mount -t nbd a mnt", "unknown file system type 'nbd': there are erofs, erofs.nbd, erofs.local, erofs.fuse", 1),
    ("mount IMAGE nowhere", "mount point nowhere: No such file or directory", 1),
    ("mount IMAGE IMAGE", "mount point IMAGE is not a directory", 1),
    ("mount https://quay.io/a mnt", "an image is not named by a URL: leave out the scheme and write 'quay.io/a'", 1),
    ("mount quay.io/Org/app mnt", "'quay.io/Org/app': the repository 'Org/app' must be in lower case", 1),
    ("mount LAYOUT mnt", "it is an OCI layout directory, which is written oci:", 1),
    ("mount DIR mnt", "it is a directory, of which `pyerofs build ", 1),
    ("mount ARCHIVE mnt", "not an EROFS image: it looks like a tar archive", 32),
    ("convert ARCHIVE oci:out", "'app.tar' is a file: write oci-archive:app.tar or docker-archive:app.tar", 1),
    ("mount oci:nowhere mnt", "nowhere is not an OCI layout directory: it has no file oci-layout", 1),
    ("mount oci:LAYOUT:nope mnt", "has no image with the name 'nope'; there are oci:", 32),
    ("umount mnt", "mnt is not a mount point (`pyerofs list`)", 1),
    ("umount nowhere", "nowhere does not exist", 1),
    ("stat", "stat needs a TARGET (`pyerofs list` shows what is mounted)", 1),
    ("stat --watch mnt", "mnt is not a mount of pyerofs with a daemon (see `pyerofs list`)", 1),
    ("cache gc --older-than 30", "--older-than='30': a time with its unit is needed, such as 30d (s, m, h, d or w)", 1),
    ("cache gc --max 1x", "--max='1x': it must be a size such as 20G (units K, M, G, T), or 1% to 100% of the disk", 1),
    ("cache rm", "name the blobs to remove by their digests, or all of them by --all", 1),
    ("cache rm abcdef", "the cache has no blob abcdef (`pyerofs cache ls` shows what it has)", 1),
    ("inspect REGISTRY/app:plian", "has no tag 'plian': did you mean REGISTRY/app:plain? (`pyerofs tags ", 32),
    ("ls REGISTRY/nothing", "404", 32),
    ("ls CLOSED/app", "CLOSED/app:latest: connection to ", 32),
    ("ls nosuch.invalid/app", "nosuch.invalid/app:latest: cannot resolve nosuch.invalid", 32),
    ("ls -o oci.proxy=http://CLOSED nosuch.invalid/app", "app:latest: connection to the proxy CLOSED", 32),
    ("ls ubuntuu -o oci.proxy=http://CLOSED", "docker.io/library/ubuntuu:latest: connection to the proxy", 32),
    ("cat IMAGE etc/nope", "etc/nope: No such file or directory", 1),
    ("cp IMAGE dir .", "dir is a directory: `cp -a` copies it", 1),
]  # fmt: skip


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("mistakes")
    (place / "tree/dir").mkdir(parents=True)
    make_image(place / "tree", place / "IMAGE")
    layout = Layout(place / "LAYOUT")
    layout.tag(layout.image([archive(file("one", b"1"))]), "app")
    (place / "DIR").mkdir()
    (place / "app.tar").write_bytes(archive(file("one", b"1")))
    return place


@pytest.mark.parametrize(("typed", "said", "status"), TABLE, ids=[row[0] or "nothing" for row in TABLE])
def test_a_mistake_is_answered_by_one_line(
    scene: Scene, things: Path, published: Published, typed: str, said: str, status: int
) -> None:
    for path in things.iterdir():
        (scene.directory / path.name).symlink_to(path)
    registry = published.plain.partition("/")[0]

    def put(text: str) -> str:
        return text.replace("REGISTRY", registry).replace("CLOSED", "127.0.0.1:9").replace("ARCHIVE", "app.tar")

    words = put(typed).split()
    if words and words[0] in ("ls", "inspect", "cat", "cp"):
        words[1:1] = ["-o", f"oci.cache={scene.cache},oci.timeout=1"]
    if words[:1] == ["cache"] and len(words) > 2:
        words += ["--dir", str(scene.cache)]
    done = scene.run(*words, env={"HOME": str(scene.directory), "PYTHONUTF8": "1", "LC_ALL": "C"})
    assert (done.status, done.out) == (status, "")
    assert put(said) in done.error
    assert not os.path.exists(scene.directory / "out")

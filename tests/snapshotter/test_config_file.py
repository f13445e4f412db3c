"""containerd's config.toml, edited and put back."""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from pyerofs.cli.main import main
from pyerofs.errors import UsageError
from pyerofs.snapshotter.config_file import install, undo

ROOT, ADDRESS = "/var/lib/pyerofs/snapshotter", "/run/pyerofs-containerd.sock"
OTHERS = """\
# the administrator's
version = 2
root = "/data/containerd"  # a disk of its own

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    sandbox_image = "registry.example/pause:1"
    [plugins."io.containerd.grpc.v1.cri".containerd]
      # fast
      snapshotter = "overlayfs" # for now
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
        runtime_type = "io.containerd.runc.v2"
"""
V3 = """\
version = 3
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "overlayfs"
"""


def put(path: Path, version: str = "1.7") -> bool:
    return install(str(path), version, ROOT, ADDRESS)


def test_what_is_ours_is_put_in_and_all_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(OTHERS)
    path.chmod(0o640)
    assert put(path)
    text = path.read_text()
    found = tomllib.loads(text)
    cri = found["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["containerd"]["snapshotter"] == "pyerofs" and cri["containerd"]["disable_snapshot_annotations"] is False
    assert cri["containerd"]["runtimes"] == {"runc": {"runtime_type": "io.containerd.runc.v2"}}
    assert cri["sandbox_image"] == "registry.example/pause:1" and found["root"] == "/data/containerd"
    assert found["proxy_plugins"]["pyerofs"]["address"] == ADDRESS
    for comment in ("# the administrator's", "# a disk of its own", "# fast"):
        assert comment in text
    assert path.stat().st_mode & 0o777 == 0o640
    assert not put(path)  # a second time there is nothing to do
    assert undo(str(path)) and not undo(str(path))
    assert path.read_text() == OTHERS and path.stat().st_mode & 0o777 == 0o640
    assert [file.name for file in tmp_path.iterdir()] == ["config.toml"]


def test_a_file_that_was_not_there_goes_again(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    assert put(path, "2.3") and tomllib.loads(path.read_text())["version"] == 3
    assert undo(str(path)) and list(tmp_path.iterdir()) == []


def test_ours_is_the_first_that_unpacks(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(V3)
    assert put(path, "2.1") and not put(path, "2.1")
    local = tomllib.loads(path.read_text())["plugins"]["io.containerd.transfer.v1.local"]
    assert [each["snapshotter"] for each in local["unpack_config"]] == ["pyerofs", "overlayfs"]
    assert put(path, "2.3")  # an upgrade: another platform
    assert undo(str(path)) and path.read_text() == V3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('version = 2\nplugins = { "io.containerd.grpc.v1.cri" = { containerd = { snapshotter = "x" } } }\n', "safely"),
        ('version = 2\n[proxy_plugins]\npyerofs.type = "snapshot"\n', "safely"),
        ('version = 2\nnote = """\n[proxy_plugins.pyerofs]\n"""\n', "safely"),
        ("version = 3\n", "is of version 3"),
        ('root = "/x"\n', "is of version 1"),
        ("version = \n", "is not TOML"),
    ],
)
def test_what_cannot_be_edited_is_left_as_it_is(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        put(path)
    assert path.read_text() == text and [file.name for file in tmp_path.iterdir()] == ["config.toml"]


def test_what_others_have_changed_since_is_not_undone(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(OTHERS)
    put(path)
    path.write_text(changed := path.read_text() + "# mine\n")
    with pytest.raises(UsageError, match="has been changed since"):
        undo(str(path))
    assert path.read_text() == changed


def test_containerd_reads_its_own_default_with_ours(tmp_path: Path) -> None:
    containerd = shutil.which("containerd")
    assert containerd, "apt-get install containerd"
    default = subprocess.run([containerd, "config", "default"], capture_output=True, text=True, check=True).stdout
    path = tmp_path / "config.toml"
    path.write_text(default)
    assert put(path, "1.6")
    dump = [containerd, "--config", str(path), "config", "dump"]
    found = tomllib.loads(subprocess.run(dump, capture_output=True, text=True, check=True).stdout)
    assert found["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["snapshotter"] == "pyerofs"
    assert found["proxy_plugins"]["pyerofs"]["address"] == ADDRESS
    assert undo(str(path)) and path.read_text() == default


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.toml"
    path.write_text(OTHERS)
    command = ["containerd-config", "--config", str(path)]
    assert main([*command, "install", "1.7"]) == main([*command, "install", "1.7"]) == main([*command, "undo"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("config.toml")[2] for line in said] == [
        " is changed: restart containerd", ": nothing to do", " is changed: restart containerd",
    ]  # fmt: skip
    assert path.read_text() == OTHERS
    assert main([*command, "install"]) == 1 and "needs containerd's VERSION" in capsys.readouterr().err

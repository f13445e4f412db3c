"""What is given to others: the sdist has everything in it that builds the package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist's directory. It is made of a copy, so that the checkout's own metadata stay as they are."""
    made = tmp_path_factory.mktemp("sdist")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    for name in names.rstrip("\0").split("\0"):
        if (REPOSITORY / name).exists():
            (made / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, made / "copy" / name)
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "sdist", f"--dist-dir={made}"]
    subprocess.run(command, cwd=made / "copy", check=True, capture_output=True)
    (archive,) = made.glob("pyerofs-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(made, filter="data")
    return made / archive.name.removesuffix(".tar.gz")


def test_the_sdist_builds(unpacked: Path) -> None:
    """Without anything of the checkout that it was made in."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", "-q", "build", "--build-base=made", "--build-lib=lib"],
        cwd=unpacked, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code = "import pyerofs.core; print(pyerofs.core.__file__, pyerofs.core.crc32c(b'123456789'))"
    out = subprocess.run([sys.executable, "-c", code], cwd=unpacked / "lib", check=True, capture_output=True, text=True)
    path, _, checksum = out.stdout.strip().rpartition(" ")
    assert Path(path).is_relative_to(unpacked / "lib")
    assert int(checksum) == 0xE3069283


@pytest.mark.parametrize("name", [
    "LICENSE", "README.md", "CHANGELOG.md", "Makefile", "csrc/pyerofs.h", "csrc/build_core.py",
    "systemd/pyerofs.service", "tests/conftest.py", "docs/image-format.md",
])  # fmt: skip
def test_the_sdist_has(unpacked: Path, name: str) -> None:
    assert (unpacked / name).is_file()

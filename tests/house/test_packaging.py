"""What is given to others: sdist, wheel and Debian package; man pages and completion."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.support.needs import need
from tools import completion, man

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


@pytest.fixture(scope="module")
def debian(unpacked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make deb` makes of the sdist, unpacked beside the wheel."""
    need("dpkg-deb", "dpkg")
    made = tmp_path_factory.mktemp("deb")
    environment = {**os.environ, "PYTHON": sys.executable, "SOURCE_DATE_EPOCH": "1700000000"}
    done = subprocess.run([unpacked / "tools/deb.sh", made], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (package,) = made.glob("pyerofs_*.deb")
    subprocess.run(["dpkg-deb", "-R", package, made / "root"], check=True)
    return made / "root"


def test_the_debian_package_runs_with_debian_s_python(debian: Path) -> None:
    """Its C module by any Python from 3.11 on, and by the cffi that Debian 12 has."""
    libraries = debian / "usr/lib/python3/dist-packages"
    assert (libraries / "pyerofs/_core.abi3.so").is_file()
    code = "import sys; sys.path.insert(0, sys.argv[1]); import pyerofs.core as core; "
    code += "print(core.__file__, core.crc32c(b'123456789'))"
    script = (debian / "usr/bin/pyerofs").read_text()
    assert script.startswith("#!/usr/bin/python3 -P\n") and "pyerofs.cli.start" in script
    own = subprocess.run(["/usr/bin/python3", "-c", "import _cffi_backend"], capture_output=True, check=False)
    python = sys.executable if own.returncode else "/usr/bin/python3"
    out = subprocess.run([python, "-P", "-c", code, libraries], check=True, capture_output=True, text=True).stdout
    path, _, checksum = out.strip().rpartition(" ")
    assert Path(path).is_relative_to(debian) and int(checksum) == 0xE3069283


@pytest.mark.parametrize("name", [
    "usr/sbin/mount.erofs.nbd", "usr/sbin/mount.erofs.fuse", "usr/sbin/mount.erofs.oci",
    "usr/lib/systemd/system/pyerofs.service", "usr/lib/systemd/system/pyerofs-metrics.timer",
    "usr/share/man/man8/pyerofs-mount.8.gz", "usr/share/man/man5/pyerofs.toml.5.gz",
    "usr/share/bash-completion/completions/pyerofs", "usr/share/doc/pyerofs/copyright",
    "usr/share/doc/pyerofs/examples/prometheus/pyerofs.rules.yml", "DEBIAN/postinst",
])  # fmt: skip
def test_the_debian_package_has(debian: Path, name: str) -> None:
    assert (debian / name).is_file()


def test_the_wheel_installs_in_a_bare_environment(unpacked: Path, tmp_path: Path) -> None:
    """One for all Pythons from 3.11 on; its dependencies are those of this environment."""
    pip = [sys.executable, "-W", "ignore", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", f"--wheel-dir={tmp_path}", str(unpacked)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("pyerofs-*.whl")
    assert "-cp311-abi3-linux_" in wheel.name
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    python = tmp_path / "bare/bin/python"
    install = [*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (libraries,) = (tmp_path / "bare/lib").glob("python3.*/site-packages")
    (libraries / "dependencies.pth").write_text(f"{site.getsitepackages()[0]}\n")
    done = subprocess.run(
        [tmp_path / "bare/bin/pyerofs", "read", "--length", "4", __file__], cwd="/", capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, '"""W'), done.stderr
    code = "import pyerofs.core; print(pyerofs.core.__file__)"
    out = subprocess.run([python, "-P", "-c", code], cwd="/", check=True, capture_output=True, text=True).stdout
    assert Path(out.strip()).is_relative_to(tmp_path)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return man.pages()


def test_every_command_has_a_man_page(pages: dict[str, str], tmp_path: Path) -> None:
    assert {"pyerofs.8", "pyerofs-mount.8", "pyerofs-cache-gc.8", "pyerofs.toml.5", "mount.erofs.oci.8"} <= set(pages)
    assert "oci.timeout=TIME" in pages["pyerofs.toml.5"]
    lint = need("mandoc", "mandoc")
    for name, text in pages.items():
        if not text.startswith(".so"):
            path = tmp_path / name
            path.write_text(text)
            done = subprocess.run([lint, "-T", "lint", "-W", "warning", path], capture_output=True, text=True)
            assert done.stdout == "", name


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("pyerofs umo", ["umount"]),
        ("pyerofs cache ", ["ls", "gc", "verify", "rm"]),
        ("pyerofs convert --progress ", ["plain", "bar", "none", "json"]),
        ("pyerofs mount -o ro,oci.time", ["ro,oci.timeout="]),
        ("pyerofs mount quay.io/org/a", ["quay.io/org/app:1.0", "quay.io/org/away:2"]),
        ("pyerofs umount /mnt/w", ["/mnt/web"]),
    ],
)
def test_completion_knows(words: str, wanted: list[str], tmp_path: Path) -> None:
    """Commands, options, mount points, and images that the cache has heard of."""
    cache = tmp_path / "cache"
    (cache / "manifests").mkdir(parents=True)
    (cache / "manifests/a").write_text('{"image": "quay.io/org/app", "reference": "1.0"}\n{}')
    (cache / "converted/sha256-0").mkdir(parents=True)
    (cache / "converted/sha256-0/image").write_text('{"version": 2, "name": "quay.io/org/away:2"}\n{}')
    script = completion.script().replace("/var/cache/pyerofs", str(cache)).replace("$HOME/.cache/pyerofs", str(cache))
    test = f"""
    findmnt() {{ printf '%s\\n' 'overlay /var/lib/docker' 'quay.io/org/web:1 /mnt/web' 'quay.io/org/x:1 /srv/x'; }}
    cd {tmp_path}
    COMP_WORDS=({words}{' ""' if words.endswith(" ") else ""}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
    _pyerofs
    printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "none")}
    if os.geteuid() != 0:
        environment["XDG_CACHE_HOME"] = str(tmp_path)
    done = subprocess.run(["bash", "-c", script + test], env=environment, capture_output=True, text=True)
    assert sorted(done.stdout.split()) == sorted(wanted), done.stderr

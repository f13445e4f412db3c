"""Programs that we start, and our own interpreters: what decides which code runs, and who reads what they say."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pyerofs import program
from pyerofs.daemon.launch import PACKAGE, _for_python
from tests.support.scene import until

MODULES = ("json", "socket", "select", "typing", "argparse", "__future__", "contextlib", "pycurl", "cffi", "pyerofs")


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A directory with a module of each name, which leaves a file where it is imported."""
    for name in MODULES:
        text = f"open({str(tmp_path / 'sprung')!r}, 'a').write({name + ' '!r}); raise SystemExit(99)"
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


@pytest.mark.parametrize("module", ["worker", "supervisor"])
def test_daemons_import_nothing_from_the_current_directory(trap: Path, module: str) -> None:
    code = (
        "import os, socket, sys\n"
        "from pyerofs.daemon import launch\n"
        f"os.chdir({str(trap)!r})\n"
        "ours, theirs = socket.socketpair()\n"
        f"pid = launch.spawn({module!r}, '/mnt', socket_=theirs)\n"
        "theirs.close()\n"
        "ours.shutdown(socket.SHUT_WR)\n"
        "sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f":.:{PACKAGE}"}  # the worst that a caller may have
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd="/", env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == ({"worker": 1, "supervisor": 0}[module], "")
    assert not (trap / "sprung").exists()


def test_daemons_live_in_the_root_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from pyerofs.daemon import launch

    monkeypatch.chdir(tmp_path)
    for module in ("worker", "supervisor"):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            pid = launch.spawn(module, "/mnt", socket_=theirs)
            until(lambda pid=pid: os.readlink(f"/proc/{pid}/cwd") == "/", "the root directory")  # type: ignore[misc]  # binds the loop's value
        os.waitpid(pid, 0)


def test_python_m_pyerofs_imports_nothing_from_the_current_directory(trap: Path) -> None:
    for name in ("pyerofs", "contextlib"):  # what Python was told to run, and what it needs itself for that
        (trap / f"{name}.py").unlink()
    done = subprocess.run([sys.executable, "-m", "pyerofs", "--version"], cwd=trap, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (trap / "sprung").exists()


def test_python_m_pyerofs_runs_in_the_directory_of_a_checkout() -> None:
    done = subprocess.run([sys.executable, "-m", "pyerofs", "--version"], cwd=PACKAGE, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_sys_path_of_whoever_imports_us_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys; before = list(sys.path); import pyerofs; print(before == sys.path)")
    for how in (["-m", "mine"], ["mine.py"], ["-c", "import mine"]):
        done = subprocess.run([sys.executable, *how], cwd=tmp_path, capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("True\n", "")


def test_environment_of_our_interpreters_names_no_places_of_code() -> None:
    given = {
        "PATH": "/bin", "PYTHONPATH": ":/x", "PYTHONHOME": "home", "PYTHONPYCACHEPREFIX": "x", "PYTHONUSERBASE": ".",
        "PYTHONWARNINGS": "error::x.Y", "PYTHONMALLOC": "malloc", "PYEROFS_CONFIG": "",
    }  # fmt: skip
    kept = {"PATH": "/bin", "PYTHONMALLOC": "malloc", "PYEROFS_CONFIG": "", "PYTHONPATH": PACKAGE}
    assert _for_python(given) == kept
    assert _for_python({**given, "PYTHONHOME": "/usr"}) == {**kept, "PYTHONHOME": "/usr"}


# Finding


@pytest.mark.parametrize("path", ["", ":", ".", "bin", "./bin", "bin:", "/nonexistent::bin"])
def test_programs_are_not_found_by_way_of_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    script(tmp_path / "odd-program", "exit 0")
    script(tmp_path / "bin/odd-program", "exit 0")
    monkeypatch.chdir(tmp_path)
    for system in (True, False):
        assert program.find("odd-program", {"PATH": path}, system=system) is None
    assert program.find("odd-program", {"PATH": f"{path}:{tmp_path}/bin"}) == f"{tmp_path}/bin/odd-program"
    monkeypatch.setenv("PATH", path)
    assert program.find("odd-program") is None


def test_programs_run_in_the_root_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = program.run([str(script(tmp_path / "p", "pwd; echo said >&2; exit 3"))])
    assert done == (3, b"/\n", b"said\n")


# Outputs


def test_outputs_of_any_length_are_read(tmp_path: Path) -> None:
    done = program.run([str(script(tmp_path / "p", "head -c 1000000 /dev/zero >&2; head -c 1000000 /dev/zero"))])
    assert (done.status, len(done.out), len(done.err)) == (0, 1000000, 1000000)


def test_time_ends_a_program_and_what_it_has_started(tmp_path: Path) -> None:
    """The child that has the outputs goes too: nobody waits for their end."""
    pids = tmp_path / "pids"
    path = script(tmp_path / "p", f"sleep 1000 & echo $! > {pids}.new; mv {pids}.new {pids}; wait")
    with pytest.raises(program.TooSlowError):
        program.run([str(path)], timeout=2)
    child = int(pids.read_text())
    until(lambda: not _runs(child), "that the child has gone")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_drain_takes_all_lines_for_as_long_as_the_program_lives(tmp_path: Path) -> None:
    """More than a pipe holds: a program whose output nobody reads stands still."""
    path = script(tmp_path / "p", "for i in $(seq 20000); do echo line $i >&2; done; printf 'the  end' >&2")
    process = program.start([str(path)], stderr=True)
    lines: list[str] = []
    assert process.stderr is not None
    drain = program.Drain(os.dup(process.stderr.fileno()), lines.append)
    process.stderr.close()
    assert process.wait() == 0
    drain.join()
    assert lines == [*(f"line {i}" for i in range(1, 20001)), "the  end"]
    assert drain.last == "the  end"


def test_a_drain_cuts_lines_that_have_no_end() -> None:
    ours, theirs = os.pipe()
    pieces: list[str] = []
    drain = program.Drain(ours, pieces.append)
    writer = threading.Thread(target=os.write, args=(theirs, b"x" * 100_000))
    writer.start()
    writer.join()
    os.close(theirs)
    drain.join()
    assert "".join(pieces) == "x" * 100_000
    assert max(map(len, pieces)) <= 8192


# Descriptors


def test_daemons_pass_nothing_of_their_caller_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or whoever they start would keep the caller waiting for their end."""
    import socket

    from pyerofs.daemon import launch

    ours, theirs = socket.socketpair()
    with ours:
        monkeypatch.setattr(sys, "argv", ["x", str(theirs.detach())])
        monkeypatch.chdir(tmp_path)
        with launch.begin() as sock:
            assert not os.get_inheritable(sock.fileno())
            assert Path.cwd() == Path("/")

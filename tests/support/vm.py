"""A real kernel for tests: Debian's cloud kernel under qemu, or Debian's user-mode Linux, this machine's root being
its root, over virtiofs or hostfs.

    result = run_in_vm(["python", "-m", "pytest", "tests/guest"])     # the venv's python, in the repository's root
    result = run_in_vm("modprobe nbd && cat /sys/block/nbd0/size")    # a bash script

Needs root, and qemu and a cloud kernel of Debian, or user-mode-linux (NEEDS below says how to get them), no hardware
virtualisation. Several may run at once. The guest has lo as its only network, tmpfs on /run and /mnt, and the host's
/tmp and everything else; files that the host creates while the guest runs may stay unseen by it. Environment:
PYEROFS_VM_ACCEL (qemu's -accel, default "tcg,thread=multi"), PYEROFS_VM_KERNEL (a vmlinuz whose modules are below
/lib/modules).

The two differ in more than the kernel's age (6.12 and 6.1): qemu emulates every instruction, 20 times slower than
natively; user-mode Linux runs them as they are, on one CPU, and only system calls and page faults cost more.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
NEEDS = "apt-get install qemu-system-x86 qemu-system-common linux-image-6.12-cloud-amd64 kmod iproute2"
NEEDS_UML = "apt-get install user-mode-linux kmod iproute2"


Machine = Literal["qemu", "uml"]


class VMError(Exception):
    """The guest did not come up, or did not finish; the text ends with what its console said last."""


class Result(NamedTuple):
    exit_status: int
    output: str  # standard output and error of the command
    dmesg: str  # the guest's kernel log
    seconds: float  # from the start of qemu to its end


def run_in_vm(
    command: str | Path | Sequence[str | Path],
    *,
    machine: Machine = "qemu",
    cpus: int = 2,
    memory: str = "3G",
    timeout: float = 300.0,
    env: Mapping[str, str] | None = None,
    cancel: threading.Event | None = None,
) -> Result:
    """Boot, run `command` (a bash script's text, a program's path, or argv), switch off; VMError after `timeout` s, or
    soon after `cancel` is set. "uml" has one CPU whatever is asked for."""
    if os.geteuid() != 0:
        raise VMError("the guest's root is this machine's root: booting it needs root")
    with tempfile.TemporaryDirectory(prefix="pyerofs-vm-") as directory:
        job = Path(directory)
        _write_job(job / "run", command, env or {})
        started = time.monotonic()
        with (job / "console").open("w+b") as console, _boot(machine, job, console, cpus, memory) as guest:
            _wait(guest, timeout, cancel or threading.Event(), job)
        seconds = time.monotonic() - started
        if not (job / "status").exists():
            raise VMError(f"the guest gave no exit status within {seconds:.0f} s\n{_tail(job)}")
        output = (job / "output").read_text(errors="replace")
        dmesg = (job / "dmesg").read_text(errors="replace")
        return Result(int((job / "status").read_text()), output, dmesg, seconds)


def _find() -> tuple[str, str, Path]:
    qemu = shutil.which("qemu-system-x86_64")
    virtiofsd = next(
        (path for path in ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd") if Path(path).exists()), None
    )
    named = os.environ.get("PYEROFS_VM_KERNEL")
    kernels = [Path(named)] if named else sorted(Path("/boot").glob("vmlinuz-*-cloud-amd64"), key=_version)
    missing = [
        name for name, found in (("qemu", qemu), ("virtiofsd", virtiofsd), ("a cloud kernel", kernels)) if not found
    ]
    if not (qemu and virtiofsd and kernels):
        raise VMError(f"no {', no '.join(missing)} here: {NEEDS}")
    return qemu, virtiofsd, kernels[-1]


def _version(kernel: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", kernel.name)]


def _write_job(run: Path, command: str | Path | Sequence[str | Path], env: Mapping[str, str]) -> None:
    if isinstance(command, str):
        text = command
    else:
        argv = [str(word) for word in ([command] if isinstance(command, Path) else command)]
        argv[0] = sys.executable if argv[0] == "python" else argv[0]
        text = "exec " + shlex.join(argv)
    exports = {"PYTHONPATH": str(REPOSITORY), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **env}
    lines = ["#!/bin/bash", *(f"export {name}={shlex.quote(value)}" for name, value in exports.items())]
    run.write_text("\n".join([*lines, f"cd {shlex.quote(str(REPOSITORY))}", text, ""]))
    run.chmod(0o755)


@contextlib.contextmanager
def _boot(machine: Machine, job: Path, console: IO[bytes], cpus: int, memory: str) -> Iterator[subprocess.Popen[bytes]]:
    """The guest's process, which has ended afterwards, with all that it has started."""
    init = f"init=/bin/bash -- {Path(__file__).with_name('vm_init.sh')} {job}"
    children = []

    def start(argv: Sequence[str]) -> subprocess.Popen[bytes]:
        children.append(
            subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, start_new_session=True
            )
        )
        return children[-1]

    try:
        if machine == "uml":
            yield start(_uml(job, memory, init))
        else:
            qemu, virtiofsd, kernel = _find()
            share = ["-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot"]
            _wait_for_socket(job, start([virtiofsd, f"--socket-path={job}/fs", *share]))
            yield start(_qemu(qemu, kernel, job, cpus, memory, init))
    finally:
        for child in reversed(children):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # user-mode Linux has a process for each of the guest's
            child.wait()


def _qemu(qemu: str, kernel: Path, job: Path, cpus: int, memory: str, init: str) -> list[str]:
    return [
        *(qemu, "-accel", os.environ.get("PYEROFS_VM_ACCEL", "tcg,thread=multi"), "-cpu", "max", "-smp", str(cpus)),
        *("-m", memory, "-object", f"memory-backend-memfd,id=mem,size={memory},share=on", "-numa", "node,memdev=mem"),
        *("-chardev", f"socket,id=fs,path={job}/fs", "-device", "vhost-user-fs-pci,chardev=fs,tag=rootfs"),
        *("-nographic", "-no-reboot", "-nic", "none", "-kernel", str(kernel), "-append"),
        f"console=ttyS0 quiet panic=-1 root=rootfs rootfstype=virtiofs rw {init}",
    ]


def _uml(job: Path, memory: str, init: str) -> list[str]:
    program = shutil.which("linux.uml")
    if program is None:
        raise VMError(f"no user-mode Linux here: {NEEDS_UML}")
    return [
        *(program, f"mem={memory}", f"uml_dir={job}", "umid=uml", "con=null", "con0=fd:0,fd:1", "quiet", "panic=-1"),
        *("root=/dev/root", "rootfstype=hostfs", "hostfs=/", "rw", *init.split()),
    ]


def _wait(guest: subprocess.Popen[bytes], timeout: float, cancel: threading.Event, job: Path) -> None:
    end = time.monotonic() + timeout
    while not cancel.is_set() and time.monotonic() < end:
        try:
            guest.wait(1)
            return
        except subprocess.TimeoutExpired:
            continue
    why = "nobody waits for it any more" if cancel.is_set() else f"it was still running after {timeout:.0f} s"
    raise VMError(f"the guest was ended: {why}\n{_tail(job)}")


def _wait_for_socket(job: Path, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while not (job / "fs").exists():
        if server.poll() is not None or time.monotonic() > deadline:
            raise VMError(f"virtiofsd does not start\n{_tail(job)}")
        time.sleep(0.01)


def _tail(job: Path) -> str:
    """The ends of the console and of the command's output."""
    parts = []
    for name in ("console", "output"):
        text = (job / name).read_text(errors="replace") if (job / name).exists() else ""
        parts.append(f"--- {name} ---\n" + "\n".join(text.splitlines()[-40:]))
    return "\n".join(parts)

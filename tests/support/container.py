"""This machine's files under a systemd of their own: systemd-nspawn over an overlay, gone when it ends.

Nothing that is done in it is seen outside, but for the directory that is given to it. The network is the machine's.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support.needs import need, need_root

TIMEOUT = 120
_UNIT = "pyerofs-test.service"
_SCRIPT = """\
mount --bind / {root}
exec systemd-nspawn -q --register=no --keep-unit --machine={name} -D {root} --volatile=overlay --capability=all \
--bind={directory} --bind=/dev/fuse --bind=/dev/autofs --bind-ro={units}:/run/systemd/system.control --setenv=LC_ALL=C \
--boot systemd.unit={unit} systemd.show_status=0
"""


class Ended(NamedTuple):
    status: int
    out: str


def run_in_container(directory: Path, script: str, units: Mapping[str, str] | None = None) -> Ended:
    """Run the script (of bash, ending at the first failure) as root, with these units; `directory` is shared.

    `pyerofs` and mount(8)'s helpers are those of this interpreter.
    """
    need_root()
    need("systemd-nspawn", "systemd-container")
    for name in ("root", "units"):
        (directory / name).mkdir()
    for name, text in (units or {}).items():
        (directory / "units" / name).write_text(text)
    out, status, program = directory / "out", directory / "status", directory / "script"
    program.write_text(script)
    binaries = Path(sys.executable).parent
    (directory / "units" / _UNIT).write_text(
        "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\n"
        f"Environment=PATH={binaries}:{os.environ['PATH']}:/usr/sbin HOME=/root PYEROFS_CONFIG=\n"
        f"ExecStart=/bin/bash -c '/bin/bash -e {program} >{out} 2>&1; echo $? >{status}'\n"
        "ExecStopPost=/bin/systemctl --force --force poweroff\n"
    )
    steps = _SCRIPT.format(
        root=directory / "root", units=directory / "units", directory=directory, unit=_UNIT, name=f"t{os.getpid()}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", steps],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT,
    )  # fmt: skip
    assert status.exists(), f"it has not come up: {shlex.join(done.args)}: {done.stdout}{done.stderr}"
    return Ended(int(status.read_text()), out.read_text(errors="backslashreplace"))

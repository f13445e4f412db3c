"""Programs that tests need: a missing one fails the test, with the command that installs it (`make test` does that)."""

from __future__ import annotations

import os
import shutil

import pytest


def need(program: str, package: str) -> str:
    """The path of `program`, which Debian's `package` brings."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if path is None:
        pytest.fail(f"{program} is not here: apt-get install {package}", pytrace=False)
    return path


def need_root() -> None:
    if os.geteuid() != 0:
        pytest.fail("this test mounts: run it as root", pytrace=False)

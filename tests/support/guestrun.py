"""The run of tests/guest in a real kernel, beside all other tests: it is emulated, and would else be waited for."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

from tests.support import rootfs, vm
from tests.support.vm import Machine

PYTEST = ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:benchmark"]
TIMEOUT = 1140.0  # seconds, for all of a boot together

# Which tests run in which machine. User-mode Linux is by far the faster one, and of Debian 12's own kernel version.
MARKS: dict[Machine, str] = {"uml": "not qemu", "qemu": "qemu"}


class Outcome(NamedTuple):
    outcome: str
    text: str


@functools.cache
def collect() -> dict[str, Machine]:
    """The node ids below tests/guest, collected by a pytest of its own, and where they run. Raises RuntimeError."""
    found: dict[str, Machine] = {}
    for machine, mark in MARKS.items():
        command = [sys.executable, *PYTEST, "--collect-only", "-q", "-m", mark, "tests/guest"]
        environment = {**os.environ, "PYEROFS_GUEST": ""}
        done = subprocess.run(command, cwd=vm.REPOSITORY, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"tests/guest cannot be collected:\n{done.stdout}{done.stderr}")
        found |= dict.fromkeys((line for line in done.stdout.splitlines() if "::" in line), machine)
    return found


class GuestRun(threading.Thread):
    """Runs the tests that `chosen` names, in one boot. `found`, after join(): what became of each."""

    def __init__(self, machine: Machine, chosen: list[str]):
        super().__init__(name="guest", daemon=True)
        self.chosen = chosen
        self._machine = machine
        self.found: dict[str, Outcome] = {}
        self._cancel = threading.Event()

    def run(self) -> None:
        # Its own place for temporary files: /tmp is this machine's, with the directories of other runs.
        command = ["python", *PYTEST, "-q", "--basetemp=/run/pytest", *self.chosen]
        trouble = "the guest's pytest did not run it"
        with tempfile.TemporaryDirectory(prefix="pyerofs-guest-") as directory:
            results = Path(directory, "results")
            environment = {"PYEROFS_GUEST": str(results), "PYEROFS_ROOTFS": directory}
            try:
                # What the host makes while the guest runs may stay unseen by it; and there it would take minutes.
                if any("test_rootfs" in name for name in self.chosen):
                    rootfs.publish(Path(directory))
                done = vm.run_in_vm(
                    command, machine=self._machine, timeout=TIMEOUT, env=environment, cancel=self._cancel
                )
                trouble += f"\n{done.output}"
            except (vm.VMError, rootfs.RootFSError) as error:
                trouble = str(error)
            lines = results.read_text().splitlines() if results.exists() else []
        found = {name: Outcome("failed", trouble) for name in self.chosen}
        for result in map(json.loads, lines):
            # A test that passed may still fail in its teardown, which comes later and counts.
            found[result["id"]] = Outcome(result["outcome"], result["text"])
        self.found = found

    def end(self) -> None:
        """At once, whether it has finished or not."""
        self._cancel.set()
        self.join()


class GuestRuns:
    """As a GuestRun, but a boot of each machine, side by side."""

    def __init__(self, chosen: list[str]):
        self._started = False
        self._runs = []
        for machine in MARKS:
            names = [name for name in chosen if collect()[name] == machine]
            if names:
                self._runs.append(GuestRun(machine, names))

    def start(self) -> None:
        self._started = True
        for run in self._runs:
            run.start()

    def outcome(self, name: str) -> Outcome:
        """Starts them if nothing has, and waits for it."""
        if not self._started:
            self.start()
        run = next(run for run in self._runs if name in run.chosen)
        run.join()
        return run.found[name]

    def end(self) -> None:
        for run in self._runs if self._started else ():
            run.end()

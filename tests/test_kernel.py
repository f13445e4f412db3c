"""Runs tests/guest inside a real kernel and shows each of its tests here, by name.

One boot runs all that were selected (`-k nbd_device`, say). A guest that does not boot or does not finish fails them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import vm

PYTEST = ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:benchmark"]
TIMEOUT = 900.0  # seconds, for all of them together


class Outcome(NamedTuple):
    outcome: str
    text: str


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "guest_test" in metafunc.fixturenames:
        names = guest_tests()
        metafunc.parametrize("guest_test", names, ids=[name.removeprefix("tests/guest/") for name in names])


def guest_tests() -> list[str]:
    """The node ids below tests/guest, collected by a pytest of its own."""
    command = [sys.executable, *PYTEST, "--collect-only", "-q", "tests/guest"]
    environment = {**os.environ, "PYEROFS_GUEST": ""}
    done = subprocess.run(command, cwd=vm.REPOSITORY, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise pytest.UsageError(f"tests/guest cannot be collected:\n{done.stdout}{done.stderr}")
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.fixture(scope="session")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    """What became of each guest test that is selected in this session."""
    specs = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = [spec.params["guest_test"] for spec in specs if spec and "guest_test" in spec.params]
    results = tmp_path_factory.mktemp("guest") / "results"
    # Its own place for temporary files: /tmp is this machine's, with the directories of other runs.
    command = ["python", *PYTEST, "-q", "--basetemp=/run/pytest", *chosen]
    trouble = "the guest's pytest did not run it"
    try:
        done = vm.run_in_vm(command, timeout=TIMEOUT, env={"PYEROFS_GUEST": str(results)})
        trouble += f"\n{done.output}"
    except vm.VMError as error:
        trouble = str(error)
    found = {name: Outcome("failed", trouble) for name in chosen}
    lines = results.read_text().splitlines() if results.exists() else []
    for result in map(json.loads, lines):
        # A test that passed may still fail in its teardown, which comes later and counts.
        found[result["id"]] = Outcome(result["outcome"], result["text"])
    yield found


def test_guest(guest_test: str, outcomes: dict[str, Outcome]) -> None:
    outcome, text = outcomes[guest_test]
    if outcome == "skipped":
        pytest.skip(text)
    if outcome != "passed":
        pytest.fail(f"in the guest:\n{text}", pytrace=False)

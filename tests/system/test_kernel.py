"""Runs tests/guest inside a real kernel and shows each of its tests here, by name.

A few boots run all that were selected (`-k nbd_device`, say), from the start of the session on; conftest.py puts the
tests of this file last, so that the guest runs beside all others. A guest that does not boot or does not finish fails
them.
"""

from __future__ import annotations

import pytest

from tests.support import guestrun

pytestmark = pytest.mark.timeout(1500)  # seconds: the first one waits for the whole run of its guest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "guest_test" in metafunc.fixturenames:
        names = guestrun.collect()
        metafunc.parametrize("guest_test", names, ids=[name.removeprefix("tests/guest/") for name in names])


# Each test waits for its whole boot, which ends itself in time.
@pytest.mark.timeout(guestrun.TIMEOUT + 120)
def test_guest(guest_test: str, guest_run: guestrun.GuestRuns) -> None:
    outcome, text = guest_run.outcome(guest_test)
    if outcome == "skipped":
        pytest.skip(text)
    if outcome != "passed":
        pytest.fail(f"in the guest:\n{text}", pytrace=False)

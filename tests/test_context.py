"""Where lines for a caller of the Python interface go."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from pyerofs.context import NOBODY, Context, ignore, log_of_caller, trace_of_caller


def test_a_caller_s_own_place_comes_first() -> None:
    lines: list[str] = []
    log_of_caller(lines.append)("x")
    trace = trace_of_caller(lines.append)
    assert trace
    trace("y")
    assert lines == ["x", "y"]


def test_the_logger_gets_warnings_and_what_goes_over_the_wire(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "pyerofs"):
        log_of_caller(None)("something")
        trace = trace_of_caller(None)
        assert trace
        trace("GET /v2/")
    assert caplog.record_tuples == [
        ("pyerofs", logging.WARNING, "something"),
        ("pyerofs", logging.DEBUG, "GET /v2/"),
    ]
    with caplog.at_level(logging.INFO, "pyerofs"):
        assert trace_of_caller(None) is None  # so that nobody makes lines for nothing


@pytest.mark.parametrize("imported", [True, False])
def test_a_program_that_has_set_up_no_logging_sees_nothing(imported: bool) -> None:
    code = f"""
import sys
if {imported}: import logging
from pyerofs.context import log_of_caller
log_of_caller(None)("something")
print("logging" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{imported}\n", "")


def test_nobody_hears_and_nobody_cancels() -> None:
    assert (NOBODY.log("x"), NOBODY.trace, NOBODY.cancelled()) == (None, None, False)  # type: ignore[func-returns-value]  # that is what is tested
    lines: list[str] = []
    context = Context(ignore, lines.append, lambda: True).with_log(lines.append)
    context.log("x")
    assert (lines, context.cancelled()) == (["x"], True)

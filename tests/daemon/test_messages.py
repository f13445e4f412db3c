"""What the processes of a mount say to one another survives JSON, and is understood by another version."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from pyerofs.daemon.messages import Handover, MountPlan, MountRequest, PlannedMount, Resume, Watch
from pyerofs.daemon.record import LayerRecord, Record
from pyerofs.errors import (
    AuthError,
    CorruptError,
    ImageError,
    InternalError,
    MountError,
    NotFoundError,
    PyerofsError,
    RegistryError,
    SpoiledError,
    UnavailableError,
    UsageError,
    from_json,
    to_json,
    unexpected,
)
from pyerofs.oci.location import Location

REQUEST = MountRequest(
    source="r/app:1",
    fstype="erofs.nbd",
    options=["oci=0", "ro"],
    driver="nbd",
    target="/mnt",
    defaults=[[("oci.timeout", "5")]],
    verbosity=1,
    directory="/home",
    environment={"HOME": "/root"},
)
RECORD = Record(
    "pyerofs-1", 7, 8, "/mnt", "r/app:1", "nbd", "/dev/nbd0", (LayerRecord("pyerofs-1", "/dev/nbd0", 4096),)
)
PLAN = MountPlan("/dev/nbd0", "", [PlannedMount("/dev/nbd0", 0, ["/dev/nbd1"], True)])
MESSAGES = [
    REQUEST,
    PLAN,
    Resume(RECORD, 2, {"pyerofs-1": 1}, 5, "-100"),
    Watch(RECORD, REQUEST, 1, 120.0, "0", ("auto", "info")),
    Watch(RECORD, None, 1, 120.0, "0", ("auto", "info")),
    Handover(REQUEST, {"pyerofs-1": 1}),
]


def test_a_request_tells_where_the_image_is() -> None:
    """As the front end has understood it, whatever exists by then; one of an earlier version has the user's text."""
    made = Location.parse("oci:/d:x")
    request = dataclasses.replace(REQUEST, location=made.as_list())
    assert MountRequest.from_json(through_json(request.to_json())).get_location() == made
    assert REQUEST.get_location() == Location.parse("r/app:1")
    local = dataclasses.replace(REQUEST, source="/dev/null", options=["ro"])
    assert local.get_location() == Location("file", "/dev/null")


def through_json(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_json(message: Any) -> None:
    again = type(message).from_json(through_json(message.to_json()))
    assert through_json(again.to_json()) == through_json(message.to_json())
    assert type(again) is type(message)


def test_keys_of_a_later_version_are_ignored() -> None:
    assert MountPlan.from_json({**through_json(PLAN.to_json()), "later": 1}) == PLAN


def test_a_request_of_an_earlier_version_has_defaults() -> None:
    values = through_json(REQUEST.to_json())
    del values["defaults"]
    assert MountRequest.from_json(values).defaults == []


@pytest.mark.parametrize("values", [{}, {"source": "x"}, {"record": {}, "restarts": 0, "sockets": {}}])
def test_what_is_no_message_is_told_by_its_exception(values: dict[str, Any]) -> None:
    for kind in (MountRequest, Resume, MountPlan, Handover):
        with pytest.raises((TypeError, KeyError, ValueError)):
            kind.from_json(values)


ERRORS: list[PyerofsError] = [
    PyerofsError("x"),
    UsageError("x"),
    UnavailableError("x"),
    ImageError("x"),
    MountError("x"),
    InternalError("x"),
    RegistryError("x", temporary=True, retry_after=2.5),
    AuthError("x"),
    NotFoundError("x"),
    CorruptError("x", 5),
    SpoiledError("x"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_keeps_its_class_from_process_to_process(error: PyerofsError) -> None:
    again = from_json(through_json(to_json(error)))
    assert type(again) is type(error)
    assert (str(again), again.status, vars(again)) == (str(error), error.status, {**vars(error), **vars(again)})
    assert all(getattr(again, name) == value for name, value in vars(error).items())


def test_every_class_of_error_is_among_those() -> None:
    def below(base: type[PyerofsError]) -> set[type[PyerofsError]]:
        return {base}.union(*(below(each) for each in base.__subclasses__() if each.__module__ == base.__module__))

    assert below(PyerofsError) == {type(error) for error in ERRORS}


def test_an_error_of_another_version_is_one_all_the_same() -> None:
    again = from_json({"error": "x", "status": 32})
    assert (type(again), str(again), again.status) == (PyerofsError, "x", 32)
    assert from_json({"error": "x", "status": 1, "class": "LaterError"}).status == 1


def test_a_bug_is_one_line_with_its_place_and_its_trace_is_kept() -> None:
    try:
        {"that": 1}["this"]
    except KeyError as error:
        bug = InternalError.of(error)
    assert str(bug).startswith("internal error at test_messages.py:") and "KeyError: 'this'" in str(bug)
    assert "\n" not in str(bug) and "report" in str(bug)
    assert "Traceback" in bug.trace
    assert bug.status == 4
    assert from_json(through_json(to_json(bug))).trace == bug.trace  # type: ignore[attr-defined] # it is another bug's


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (MemoryError(), UnavailableError, "out of memory: this process may use less"),
        (RuntimeError("can't start new thread"), UnavailableError, "cannot start a thread: this process"),
        (ImportError("libx.so"), UnavailableError, "cannot load a part of this program: libx.so"),
        (RuntimeError("x"), InternalError, "internal error (RuntimeError: x): this is a bug in pyerofs"),
        (UsageError("x"), UsageError, "x"),
    ],
)
def test_an_unexpected_error_says_whose_fault_it_is(error: Exception, kind: type[PyerofsError], text: str) -> None:
    found = unexpected(error)
    assert type(found) is kind
    assert str(found).startswith(text)

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.errors import UsageError
from pyerofs.oci.platforms import Platform, rank

quick = settings(deadline=None, derandomize=True, print_blob=True, max_examples=200)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("linux/amd64", "linux/amd64"),
        ("Linux/x86_64", "linux/amd64"),
        ("linux/x86-64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/3", "linux/amd64/v3"),
        ("linux/i386", "linux/386"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/8", "linux/arm64"),
        ("linux/arm64/v8.0", "linux/arm64"),
        ("linux/arm64/v8.5", "linux/arm64/v8.5"),
        ("linux/arm64/v9.0", "linux/arm64/v9"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("macos/arm64", "darwin/arm64"),
        ("linux/riscv64", "linux/riscv64"),
        ("linux/ppc64le/power9", "linux/ppc64le/power9"),
    ],
)
def test_parse(text: str, normal: str) -> None:
    platform = Platform.parse(text)
    assert str(platform) == normal
    assert Platform.parse(normal) == platform


@pytest.mark.parametrize(
    "text",
    ["", "linux", "amd64", "linux/", "/amd64", "a/b/c/d", "linux/amd64/", "linux/am d64", "linux/amd64\n", "l\u00ed/a"],
)
def test_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a platform"):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("machine", "normal"),
    [
        ("x86_64", "linux/amd64"),
        ("aarch64", "linux/arm64"),
        ("armv7l", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("armv5tejl", "linux/arm/v5"),
        ("armv8l", "linux/arm/v8"),
        ("i686", "linux/386"),
        ("ppc64le", "linux/ppc64le"),
        ("loongarch64", "linux/loong64"),
        ("s390x", "linux/s390x"),
    ],
)
def test_host(monkeypatch: pytest.MonkeyPatch, machine: str, normal: str) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "host", "6.12", "#1", machine)))
    assert str(Platform.host()) == normal


def test_features_are_no_part_of_the_name() -> None:
    assert str(Platform("linux", "amd64", "", ("erofs",))) == "linux/amd64"
    assert rank(Platform("linux", "amd64"), Platform("linux", "amd64", "", ("erofs",))) == 0


@pytest.mark.parametrize(
    ("wanted", "ladder", "never"),
    [
        ("linux/amd64", ["linux/amd64"], ["linux/amd64/v2", "linux/386", "linux/arm64", "windows/amd64"]),
        ("linux/amd64/v3", ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64"], ["linux/amd64/v4", "linux/amd64/v0"]),
        ("linux/arm/v7", ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"], ["linux/arm/v8", "linux/arm/v4"]),
        ("linux/arm/v6", ["linux/arm/v6", "linux/arm/v5"], ["linux/arm"]),
        ("linux/arm/v5", ["linux/arm/v5"], ["linux/arm/v6"]),
        ("linux/arm64", ["linux/arm64/v8"], ["linux/arm64/v8.1", "linux/arm64/v9", "linux/arm/v8", "linux/arm/v7"]),
        ("linux/arm64/v8.2", ["linux/arm64/v8.2", "linux/arm64/v8.1", "linux/arm64"], ["linux/arm64/v8.3"]),
        (
            "linux/arm64/v9.1",
            ["linux/arm64/v9.1", "linux/arm64/v9", *(f"linux/arm64/v8.{n}" for n in range(6, -1, -1))],
            ["linux/arm64/v8.7", "linux/arm64/v9.2"],
        ),
        ("linux/arm64/v9.7", ["linux/arm64/v9.7", "linux/arm64/v8.9"], ["linux/arm64/v8.10"]),
        ("linux/ppc64le/power9", ["linux/ppc64le/power9", "linux/ppc64le"], ["linux/ppc64le/power8"]),
        ("linux/riscv64", ["linux/riscv64"], ["linux/riscv64/rva20u64"]),
        ("linux/amd64/odd", ["linux/amd64/odd"], ["linux/amd64"]),
    ],
)
def test_rank(wanted: str, ladder: list[str], never: list[str]) -> None:
    ranks = [rank(Platform.parse(wanted), Platform.parse(have)) for have in ladder]
    assert ranks[0] == 0
    assert None not in ranks
    assert ranks == sorted(set(ranks), key=lambda n: n or 0)
    assert [rank(Platform.parse(wanted), Platform.parse(have)) for have in never] == [None] * len(never)


names = (
    st.sampled_from(["linux", "amd64", "x86_64", "arm", "arm64", "386", "v1", "v7", "v8.3", "9.9", "v99999", ""])
    | st.text()
)


@given(st.text() | st.lists(names, max_size=4).map("/".join))
@quick
def test_any_text_is_a_platform_or_a_usage_error(text: str) -> None:
    try:
        platform = Platform.parse(text)
    except UsageError:
        return
    assert Platform.parse(str(platform)) == platform
    assert rank(platform, platform) == 0


@given(st.builds(Platform, names, names, names), st.builds(Platform, names, names, names))
@quick
def test_rank_takes_anything(wanted: Platform, have: Platform) -> None:
    distance = rank(wanted, have)
    assert distance is None or distance >= 0
    assert rank(wanted, wanted) == 0

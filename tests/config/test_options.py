from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyerofs.config import mount_flags as o
from pyerofs.config import options
from pyerofs.config.option_edits import replaced, without_secrets
from pyerofs.config.option_text import split
from pyerofs.config.options import (
    MountOptions,
    ReadOptions,
    names_image,
    parse_mount_options,
    parse_oci_options,
)
from pyerofs.errors import UsageError
from pyerofs.oci.platforms import Platform
from pyerofs.quantity import Limit
from pyerofs.secret import Secret

quick = settings(deadline=None, derandomize=True, print_blob=True, max_examples=200)
D = "sha256:" + "0a" * 32


def parse(*texts: str, fstype: str = "erofs") -> MountOptions:
    return parse_mount_options(texts, fstype)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("", []),
        (",,", []),
        ("ro", ["ro"]),
        ("ro,,acl,", ["ro", "acl"]),
        (r"oci.password=a\,b,ro", ["oci.password=a,b", "ro"]),
        (r"oci.password=a\\,ro", ["oci.password=a\\", "ro"]),
        (r"oci.password=a\\\,b", [r"oci.password=a\,b"]),
        (r"a=\x\"", [r"a=\x\""]),
        ("a=\\", ["a=\\"]),
        ('context="a,b",ro', ['context="a,b"', "ro"]),
        (r'context="a\,b\",ro', [r'context="a\,b\"', "ro"]),
        ('a=b",c"', ['a=b"', 'c"']),
        ('"a,b"', ['"a', 'b"']),
        ('a=b="c,d"', ['a=b="c', 'd"']),
        ('a="",b=""', ['a=""', 'b=""']),
    ],
)
def test_split(text: str, items: list[str]) -> None:
    assert split(text) == items


@pytest.mark.parametrize("text", ['oci.password="hunter2,ro', 'oci.password="', "oci.password=hunter2\0"])
def test_split_refuses(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        split(text)
    assert "hunter2" not in str(caught.value)


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)))
@example(["a\\", "\\,", ","])
@quick
def test_split_gives_back_what_was_escaped(values: list[str]) -> None:
    items = [f"k={value}" for value in values if value[0] != '"']
    assert split(",".join(item.replace("\\", "\\\\").replace(",", "\\,") for item in items)) == items


def test_defaults() -> None:
    assert parse() == MountOptions(driver="auto", flags=o.MS_RDONLY, data="", warnings=(), oci=ReadOptions())
    assert parse("ro,defaults") == parse()
    assert ReadOptions().connections == 1
    assert ReadOptions().timeout == 120


@pytest.mark.parametrize(
    ("fstype", "driver"), [("erofs", "auto"), ("erofs.nbd", "nbd"), ("erofs.local", "local"), ("erofs.fuse", "fuse")]
)
def test_driver(fstype: str, driver: str) -> None:
    assert parse(fstype=fstype).driver == driver


@pytest.mark.parametrize("fstype", ["ext4", "", "erofs.", "EROFS", "erofs.ublk"])
def test_unknown_type(fstype: str) -> None:
    with pytest.raises(UsageError, match=r"there are erofs, erofs.nbd, erofs.local, erofs.fuse"):
        parse(fstype=fstype)


NOTHING = o.MS_NOEXEC | o.MS_NOSUID | o.MS_NODEV


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("nosuid,nodev,noexec", NOTHING),
        ("nosuid,nodev,noexec,suid,dev,exec", 0),
        ("suid,nosuid", o.MS_NOSUID),
        ("user", NOTHING),
        ("user=me", NOTHING),
        ("users,exec", o.MS_NOSUID | o.MS_NODEV),
        ("exec,user", NOTHING),
        ("owner", o.MS_NOSUID | o.MS_NODEV),
        ("group,suid", o.MS_NODEV),
        ("nouser,noauto,auto,nofail,_netdev", 0),
        ("noatime", o.MS_NOATIME),
        ("noatime,atime", 0),
        ("relatime,noatime", o.MS_NOATIME),
        ("noatime,strictatime", o.MS_STRICTATIME),
        ("strictatime,nostrictatime", 0),
        ("relatime,norelatime", 0),
        ("nodiratime", o.MS_NODIRATIME),
        ("nodiratime,diratime", 0),
        ("sync,dirsync", o.MS_SYNCHRONOUS | o.MS_DIRSYNC),
        ("sync,async", 0),
        ("silent", o.MS_SILENT),
        ("quiet,loud", 0),
        ("iversion,lazytime,mand", o.MS_I_VERSION | o.MS_LAZYTIME | o.MS_MANDLOCK),
        ("iversion,lazytime,mand,noiversion,nolazytime,nomand", 0),
        ("nosymfollow", o.MS_NOSYMFOLLOW),
        ("comment=a b,x-gvfs-show,x-systemd.automount,X-mount.mkdir=0755", 0),
    ],
)
def test_flags(text: str, flags: int) -> None:
    options = parse(text)
    assert options.flags == flags | o.MS_RDONLY
    assert options.data == ""
    assert options.warnings == ()


def test_flags_are_the_system_s() -> None:
    # <linux/mount.h>
    assert (o.MS_NOSYMFOLLOW, o.MS_SILENT, o.MS_RELATIME, o.MS_LAZYTIME) == (256, 32768, 1 << 21, 1 << 25)


def test_quiet_and_loop() -> None:
    assert parse("quiet").quiet
    assert not parse("quiet,loud").quiet
    assert parse("loop").loop
    assert not parse().loop


def test_an_upper_directory_makes_it_writable() -> None:
    upper = "oci.upperdir=/up,oci.workdir=/work"
    assert parse(upper).upper == ("/up", "/work")
    assert names_image([upper])
    for text, read_only in (("", 0), ("rw", 0), ("ro", o.MS_RDONLY), ("rw,ro", o.MS_RDONLY), ("ro,rw", 0)):
        found = parse(upper, text, "nosuid")
        assert (found.flags, found.warnings) == (read_only | o.MS_NOSUID, ())
    assert parse("oci.upperdir=up", "oci.workdir=work").upper == (os.path.abspath("up"), os.path.abspath("work"))
    assert parse("oci").upper is None
    for half in ("oci.upperdir=/up", "oci.workdir=/work"):
        with pytest.raises(UsageError, match=r"oci.upperdir and oci.workdir must be given together"):
            parse(half)
    with pytest.raises(UsageError, match=r"'oci.upperdir' is for mount only"):
        options.parse_oci_options([upper])


def test_rw_becomes_ro_with_a_warning() -> None:
    options = parse("rw,rw")
    assert options.flags == o.MS_RDONLY
    assert len(options.warnings) == 1
    assert "rw is ignored" in options.warnings[0]
    assert parse("rw", "ro").warnings == ()


@pytest.mark.parametrize(
    "text",
    [
        "user_xattr,nouser_xattr,acl,noacl",
        "cache_strategy=disabled",
        "cache_strategy=readaround",
        "dax",
        "dax=always",
        "dax=never",
        "device=/dev/a,device=/dev/b",
        "domain_id=d,fsid=f",
        "directio,nodirectio,inode_share",
        "fsoffset=4096",
        "some_future_option=1,another",
        'context="system_u:object_r:t:s0,c1"',
        "RO",
    ],
)
def test_passed_to_the_kernel(text: str) -> None:
    assert parse(text).data == text
    assert parse(f"ro,{text}", "nodev").data == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("remount", "remount changes what is mounted"),
        ("ro,remount", "remount changes what is mounted"),
        ("bind", "bind is not"),
        ("rbind", "rbind is not"),
        ("move", "move is not"),
        ("shared", "shared is not"),
        ("make-rslave", "make-rslave is not"),
        ("ro=1", "ro takes no value"),
        ("loop=/dev/loop0", "loop takes no value"),
        ("=x", "no name"),
        ("acl=1", "acl is written acl"),
        ("cache_strategy", "written cache_strategy=disabled or cache_strategy=readahead or cache_strategy=readaround"),
        ("cache_strategy=all", "written cache_strategy=disabled"),
        ("dax=", "written dax or dax=always or dax=never"),
        ("device", "device needs a value"),
        ("fsid=", "fsid needs a value"),
        ("fsoffset=x", "a number of bytes"),
        (r"device=a\,b", "comma"),
        (r"future=a\,b", "comma"),
        ("future=" + "x" * 4096, "longer than 4095 bytes"),
        ("oci.layer", "oci.layer needs a value: oci.layer=N"),
        ("oci=", "oci= has an empty value: write oci[=N]"),
        ("oci=x", "oci='x': a whole number from 0"),
        ("oci=-1", "a whole number"),
        ("oci=+1", "a whole number"),
        ("oci= 1", "a whole number"),
        ("oci=\u0661", "a whole number"),
        ("oci=99999", "from 0 to 9999"),
        ("oci.layer=1.0", "a whole number"),
        ("oci=0,oci.layer=1", "oci and oci.layer are given, with different values"),
        ("oci.layer=0,oci.layer=1", "oci.layer is given twice, with different values"),
        ("oci.insecure,oci.insecure=0", "oci.insecure is given twice"),
        ("oci.username=a,oci.password=hunter2,oci.password=hunter3", "oci.password is given twice"),
        ("oci.blob=sha256:00", "oci.blob: 'sha256:00' is not a digest"),
        (f"oci=0,oci.blob={D}", "oci and oci.blob exclude each other"),
        (f"oci.blob={D},oci.layer=0", "oci.layer and oci.blob exclude each other"),
        ("oci.layers=2,oci.layer=0", "oci.layer and oci.layers exclude each other"),
        ("oci.layers=0", "oci.layers"),
        ("oci.platform=linux", "oci.platform: 'linux' is not a platform"),
        ("oci.platform=", "empty value"),
        ("oci.username=a", "oci.username needs a password"),
        ("oci.password=hunter2", "a password needs a user"),
        ("oci.password_file=f", "a password needs a user"),
        (
            "oci.username=a,oci.password=hunter2,oci.password_file=f",
            "oci.password and oci.password_file exclude each other",
        ),
        ("oci.username=a,oci.password=", "empty value"),
        ('oci.username=a,oci.password=""', "empty value"),
        ("oci.insecure=maybe", "one of 1, yes, true, 0, no, false"),
        ("oci.insecure=", "empty value"),
        ("oci.cache=", "empty value"),
        ("oci.connections=0", "from 1 to 64"),
        ("oci.connections=65", "from 1 to 64"),
        ("oci.timeout=0", "a time above 0"),
        ("oci.timeout=-1", "a time above 0"),
        ("oci.timeout=nan", "a time above 0"),
        ("oci.timeout=1h", "a time above 0"),
        ("oci.pasword=hunter2", "did you mean oci.password?"),
        ("oci.Layer=1", "did you mean oci.layer?"),
        ("OCI=1", "did you mean oci?"),
        ("oci-platform=x", "did you mean oci.platform?"),
        ("nbd.atach=x", "did you mean nbd.attach?"),
        ("oci.zzzzzzzzzz", "unknown option 'oci.zzzzzzzzzz'"),
        ("nbd.attach=magic", "one of auto, netlink, ioctl"),
        ("nbd.attach", "nbd.attach needs a value"),
        ("nbd.device=/dev/sda", "such as /dev/nbd0"),
        ("nbd.device=/dev/nbd0p1", "such as /dev/nbd0"),
        ("oci.fill=some", "one of none, idle, full"),
        ("oci.fill_rate=0", "oci.fill_rate='0': a size above 0"),
        ("oci.fill_rate=10%", "a size above 0"),
        ("cache.max=0", "cache.max='0': it must be a size such as 20G"),
        ("cache.max=101%", "or 1% to 100% of the disk"),
        ("cache.max", "cache.max needs a value: cache.max=SIZE|N%"),
        ("cache.maximum=1", "did you mean cache.max?"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("oci", ReadOptions()),
        ("oci=0", ReadOptions(layer=0)),
        ("oci,oci.layer=12", ReadOptions(layer=12)),
        ("oci=3,oci.layer=3", ReadOptions(layer=3)),
        (f"oci,oci.blob={D}", ReadOptions(blob=D)),
        ("oci.layers=3", ReadOptions(layers=3)),
        ("oci.blob=" + "0a" * 32, ReadOptions(blob=D)),
        (f"oci.blob={D},oci.blob={D[7:]}", ReadOptions(blob=D)),
        ("oci.platform=linux/aarch64", ReadOptions(platform=Platform("linux", "arm64"))),
        (r"oci.username=a,oci.password=b\,=c\\", ReadOptions(username="a", password=Secret("b,=c\\"))),
        ('oci.username=a,oci.password="b,c"', ReadOptions(username="a", password=Secret("b,c"))),
        ('oci.username=a,oci.password=b"c', ReadOptions(username="a", password=Secret('b"c'))),
        ("oci.username=a,oci.password_file=/f", ReadOptions(username="a", password_file="/f")),
        ("oci.insecure", ReadOptions(insecure=True)),
        ("oci.insecure=yes,oci.insecure=1", ReadOptions(insecure=True)),
        ("oci.insecure=false", ReadOptions(insecure=False)),
        ("oci.cache=/var/c", ReadOptions(cache="/var/c")),
        ("oci.connections=64", ReadOptions(connections=64)),
        ("oci.timeout=90", ReadOptions(timeout=90)),
        ("oci.timeout=1.5s", ReadOptions(timeout=1.5)),
        ("oci.timeout=2m", ReadOptions(timeout=120)),
        ("oci.fill=idle,oci.fill_rate=1M", ReadOptions(fill="idle", fill_rate=1 << 20)),
        ("oci,cache.max=20G", ReadOptions(cache_max=Limit(20 << 30))),
        ("oci,cache.max=50%", ReadOptions(cache_max=Limit(50, percent=True))),
    ],
)
def test_oci(text: str, expected: ReadOptions) -> None:
    options = parse(text, fstype="erofs.nbd")
    assert names_image([text])
    assert options.oci == expected
    assert options.data == ""
    assert parse_oci_options([text]) == expected


def test_a_limit_alone_does_not_make_the_source_an_image() -> None:
    options = parse("cache.max=1G")
    assert not names_image(["cache.max=1G"])
    assert options.oci.cache_max == Limit(1 << 30)


def test_nbd() -> None:
    text = "nbd.attach=ioctl,nbd.device=/dev/nbd12"
    options = parse(text, fstype="erofs.nbd")
    assert (options.attach, options.device) == ("ioctl", "/dev/nbd12")
    assert not names_image([text, "ro"])
    assert (parse().attach, parse().device) == ("auto", None)


@pytest.mark.parametrize(
    ("text", "fstype"),
    [
        ("oci", "erofs.local"),
        ("oci.cache=x", "erofs.local"),
        ("cache.max=1G", "erofs.local"),
        ("nbd.attach=auto", "erofs.fuse"),
        ("nbd.device=/dev/nbd0", "erofs.local"),
    ],
)
def test_an_option_that_does_not_fit_the_driver(text: str, fstype: str) -> None:
    with pytest.raises(UsageError, match="does not fit"):
        parse(text, fstype=fstype)


@pytest.mark.parametrize("text", ["ro", "acl", "nbd.attach=auto", "oci,future=1"])
def test_only_oci_options(text: str) -> None:
    with pytest.raises(UsageError, match="is for mount only"):
        parse_oci_options([text])


def test_the_password_is_hidden() -> None:
    options = parse("oci.username=me,oci.password=hunter2")
    assert options.oci.password is not None
    assert options.oci.password.reveal() == "hunter2"
    for text in (repr(options), str(options.oci.password), f"{options.oci.password}"):
        assert "hunter2" not in text
        assert "***" in text or text == repr(options)
    with pytest.raises(TypeError):
        pickle.dumps(options.oci.password)
    with pytest.raises(TypeError):
        dataclasses.asdict(options)
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert hash(options)


def test_help_covers_every_field() -> None:
    assert {row.field for row in options._OCI_ROWS} == {f.name for f in dataclasses.fields(ReadOptions)}
    for name, argument, text in options.OCI_HELP + options.MOUNT_HELP:
        assert name in options._BY_NAME
        assert argument.startswith(("=", "[="))
        assert text


words = st.sampled_from(
    [
        *o._FLAGS,
        *o._EROFS_VALUES,
        *o._EROFS_TEXTS,
        *(row.name for row in options.ROWS),
        "=",
        ",",
        "\\",
        '"',
        "0",
        "x",
        "yes",
        D,
    ]
)


@given(st.lists(st.text() | st.lists(words).map("".join) | st.lists(words).map(",".join), max_size=3))
@example(['a="="="=' * 10_000])
@quick
def test_any_text_is_options_or_a_usage_error(texts: list[str]) -> None:
    for fstype in ("erofs", "erofs.nbd"):
        try:
            options = parse_mount_options(texts, fstype)
        except UsageError as error:
            assert "\n" not in str(error)
        else:
            assert options.flags & o.MS_RDONLY


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = parse_oci_options(["oci.cache=c,oci.ca=ca.pem,oci.username=me,oci.password_file=../p"])
    assert (found.cache, found.ca) == (f"{tmp_path}/c", f"{tmp_path}/ca.pem")
    assert found.password_file == f"{tmp_path.parent}/p"


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["device", "fsid", "x"]), st.text(alphabet='a,\\\\"=', max_size=8))))
def test_options_without_secrets_read_the_same(pairs: list[tuple[str, str]]) -> None:
    """Whatever commas, backslashes and quotes are in them."""
    text = ",".join(f"{name}={value}" for name, value in pairs)
    try:
        items = split(text)
    except UsageError:
        return
    kept, dropped = without_secrets([text, "oci.password=s3cret"])
    assert [item for one in kept for item in split(one)] == items
    assert dropped


@pytest.mark.parametrize(("texts", "new", "result"), [
    (["oci.fill=idle,nosuid"], ["oci.fill=full"], ["nosuid", "oci.fill=full"]),
    ([r"oci.ca=/a\,b", "oci.timeout=5"], ["oci.timeout=6"], [r"oci.ca=/a\,b", "oci.timeout=6"]),
    (["oci.username=a,oci.password_file=/b"], ["oci.username=c,oci.password=d"], ["oci.username=c,oci.password=d"]),
    (["oci=1"], ["oci.blob=sha256:" + "0" * 64], ["oci.blob=sha256:" + "0" * 64]),
])  # fmt: skip
def test_options_take_the_place_of_others(texts: list[str], new: list[str], result: list[str]) -> None:
    assert replaced(texts, new) == result

"""The docker-credential-* protocol, with programs that keep to it and programs that do not."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyerofs.errors import PyerofsError, RegistryError, UsageError
from pyerofs.registry import credential_helper
from pyerofs.registry.credential_helper import StoredCredential
from pyerofs.secret import Secret
from tests.support.scene import until

SERVER = "registry.example:5000"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "bin").mkdir()
    return {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "DIR": str(tmp_path)}


def install(environ: dict[str, str], script: str, name: str = "test") -> None:
    path = Path(environ["DIR"]) / "bin" / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def answer(**members: object) -> str:
    return f"cat <<'EOF'\n{json.dumps(members)}\nEOF"


def get(environ: dict[str, str], timeout: float = 20) -> StoredCredential | None:
    return credential_helper.get("test", SERVER, environ=environ, timeout=timeout)


def test_user_and_password(environ: dict[str, str]) -> None:
    install(
        environ,
        f'cat > "$DIR/asked"; echo "$@" > "$DIR/verb"; {answer(ServerURL=SERVER, Username="me", Secret="hush")}',
    )
    assert get(environ) == StoredCredential("me", Secret("hush"))
    assert (Path(environ["DIR"]) / "asked").read_text() == SERVER
    assert (Path(environ["DIR"]) / "verb").read_text() == "get\n"


def test_identity_token(environ: dict[str, str]) -> None:
    install(environ, answer(ServerURL=SERVER, Username="<token>", Secret="hush"))
    assert get(environ) == StoredCredential("<token>", Secret("hush"))


@pytest.mark.parametrize(
    "script",
    [
        "echo credentials not found in native keychain; exit 1",
        "echo credentials not found in native keychain >&2; exit 1",
        answer(ServerURL=SERVER, Username="", Secret=""),
        answer(Username="", Secret="hush"),
        answer(Username="<token>", Secret=""),
    ],
)
def test_nothing_is_known(environ: dict[str, str], script: str) -> None:
    install(environ, script)
    assert get(environ) is None


def test_helper_that_does_not_read(environ: dict[str, str]) -> None:
    install(environ, f"exec <&-; {answer(Username='me', Secret='pw')}")
    for _ in range(10):
        assert get(environ) is not None


@pytest.mark.parametrize(
    ("script", "words", "temporary"),
    [
        ("echo the keychain is locked; exit 1", "status 1: the keychain is locked", True),
        ("echo the keychain is locked >&2; exit 3", "status 3: the keychain is locked", True),
        ("exit 1", "status 1", True),
        ("kill -9 $$", "signal 9", True),
        ("exit 0", "not a JSON object", None),
        ("echo hush", "not a JSON object", None),
        ("echo '[\"hush\"]'", "not a JSON object", None),
        ("printf '\\377\\376'", "not a JSON object", None),
        (answer(Username="me"), "without a Username and a Secret", None),
        (answer(Username=["hush"], Secret="hush"), "without a Username and a Secret", None),
        ("head -c 100000 /dev/zero", "more than 64 KiB", None),
        ("head -c 100000 /dev/zero >&2; exit 1", "more than 64 KiB", None),
        ("yes hush", "more than 64 KiB", None),
    ],
)
def test_what_helpers_do_wrong(environ: dict[str, str], script: str, words: str, temporary: bool | None) -> None:
    install(environ, script)
    with pytest.raises(UsageError if temporary is None else RegistryError) as caught:
        get(environ)
    text = str(caught.value)
    assert words in text and "docker-credential-test" in text
    assert "hush" not in text and "\n" not in text and len(text) < 300
    if isinstance(caught.value, RegistryError):
        assert caught.value.temporary == temporary


def test_complaint_is_cut_and_redacted(environ: dict[str, str]) -> None:
    token = "ghp_0123456789abcdefABCDEF0123456789"
    install(environ, f"printf 'no \\033[31m luck with {token}\\nhush\\n'; exit 1")
    with pytest.raises(RegistryError) as caught:
        get(environ)
    assert str(caught.value).endswith(": no  [31m luck with ***")
    install(environ, "for i in $(seq 999); do printf 'word '; done; exit 1")
    with pytest.raises(RegistryError) as caught:
        get(environ)
    assert len(str(caught.value)) < 250


def test_timeout_ends_the_whole_session(environ: dict[str, str]) -> None:
    pids = Path(environ["DIR"]) / "pids"
    install(environ, 'sleep 1000 & echo "$! $$" > "$DIR/pids.new"; mv "$DIR/pids.new" "$DIR/pids"; wait')
    started = time.monotonic()
    with pytest.raises(RegistryError, match="no answer for registry") as caught:
        credential_helper.get("test", SERVER, environ=environ, timeout=2)
    assert caught.value.temporary
    assert time.monotonic() - started < 15
    for pid in pids.read_text().split():
        until(lambda pid=pid: not alive(int(pid)), f"that {pid} has gone")  # type: ignore[misc]  # binds the loop's value


def test_timeout_of_one_that_has_closed_its_outputs(environ: dict[str, str]) -> None:
    install(environ, "exec >&- 2>&-; exec sleep 1000")
    with pytest.raises(RegistryError, match="in time"):
        get(environ, timeout=0.5)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_environment_and_terminal(environ: dict[str, str]) -> None:
    """All of the environment, none of ours; and no terminal, at which it could ask."""
    install(
        environ, f'env > "$DIR/env"; (: < /dev/tty) 2>/dev/null && touch "$DIR/tty"; {answer(Username="a", Secret="b")}'
    )
    get({**environ, "AWS_PROFILE": "x y"})
    lines = (Path(environ["DIR"]) / "env").read_text().splitlines()
    assert "AWS_PROFILE=x y" in lines and f"PATH={environ['PATH']}" in lines
    assert not any(line.startswith("PYTEST") for line in lines)
    assert not (Path(environ["DIR"]) / "tty").exists()


def test_missing(environ: dict[str, str]) -> None:
    assert credential_helper.find("test", environ) is None
    with pytest.raises(UsageError, match="docker-credential-test is not in PATH"):
        get(environ)
    install(environ, "exit 0")
    assert credential_helper.find("test", environ) == f"{environ['DIR']}/bin/docker-credential-test"
    (Path(environ["DIR"]) / "bin/docker-credential-test").write_bytes(b"\x7fELF not really")
    with pytest.raises(UsageError, match="cannot run docker-credential-test"):
        get(environ)


@pytest.mark.parametrize("name", ["", "../sh", "a/b", "a b", "-x", ".", "a\0", "a\n", "ä", "x" * 200])
def test_names(environ: dict[str, str], name: str) -> None:
    with pytest.raises(UsageError, match="name of a credential helper"):
        credential_helper.get(name, SERVER, environ=environ)


@settings(max_examples=300)
@given(
    st.binary()
    | st.recursive(
        st.none() | st.text() | st.integers(),
        lambda x: st.dictionaries(st.sampled_from(["Username", "Secret", "x"]), x),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_answer(output: bytes) -> None:
    try:
        credential_helper._read("docker-credential-x", output)
    except PyerofsError as error:
        assert "\n" not in str(error)

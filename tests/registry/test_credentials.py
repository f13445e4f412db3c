"""Where credentials are found, which win, and what is said (and not said) about a file that is broken."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyerofs.errors import RegistryError, UsageError
from pyerofs.registry.credentials import Credentials, from_options, lookup, read_password_file
from pyerofs.secret import Secret

HOST = "registry.example:5000"
BROKEN = ("aHVzaA==", "hush hush", "h\u00fcsh")  # "hush" in base64 without a colon, and no base64 at all


def auth(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def write(path: Path, content: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def docker(home: Path, **config: object) -> dict[str, str]:
    write(home / ".docker" / "config.json", config)
    return environ(home)


def environ(home: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run"), **more}


def user(host: str, repository: str, variables: dict[str, str]) -> str | None:
    found = lookup(host, repository, variables)
    return found.username if found else None


def test_nothing_anywhere(home: Path) -> None:
    assert lookup(HOST, "a/b", environ(home)) is None


@pytest.mark.parametrize(
    "key", [HOST, f"https://{HOST}", f"http://{HOST}/", f"https://{HOST}/v1/", f"https://{HOST}/v2"]
)
def test_docker_keys(home: Path, key: str) -> None:
    found = lookup(HOST, "a/b", docker(home, auths={"other": auth("no", "no"), key: auth("me", "p:w")}))
    assert found == Credentials(str(home / ".docker/config.json"), "me", Secret("p:w"))


@pytest.mark.parametrize("host", ["registry-1.docker.io", "docker.io", "index.docker.io"])
@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "index.docker.io", "registry-1.docker.io"])
def test_docker_hub(home: Path, host: str, key: str) -> None:
    assert user(host, "library/x", docker(home, auths={key: auth("me", "pw")})) == "me"


def test_another_port_or_host_gets_nothing(home: Path) -> None:
    variables = docker(home, auths={"registry.example": auth("me", "pw"), "evil.example:5000": auth("x", "y")})
    assert lookup(HOST, "a", variables) is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"username": "me", "password": "pw"}, ("me", "pw", None, None)),
        ({"identitytoken": "idt"}, ("", None, "idt", None)),
        ({**auth("me", "pw"), "identitytoken": "idt"}, ("me", "pw", "idt", None)),
        (auth("<token>", "idt"), ("", None, "idt", None)),
        ({"registrytoken": "rt"}, ("", None, None, "rt")),
        (auth("me", "pw\0\0"), ("me", "pw", None, None)),
        ({"username": 7, "password": ["x"]}, None),
        ({}, None),
        ("text", None),
    ],
)
def test_docker_entries(home: Path, entry: object, expected: tuple[object, ...] | None) -> None:
    found = lookup(HOST, "a", docker(home, auths={HOST: entry}))
    if expected is None:
        assert found is None
    else:
        assert found is not None
        secrets = [s.reveal() if s else None for s in (found.password, found.identity_token, found.registry_token)]
        assert (found.username, *secrets) == expected


def test_docker_config_variable(home: Path) -> None:
    write(home / "elsewhere" / "config.json", {"auths": {HOST: auth("there", "pw")}})
    docker(home, auths={HOST: auth("home", "pw")})
    assert user(HOST, "a", environ(home, DOCKER_CONFIG=str(home / "elsewhere"))) == "there"


def test_containers_most_specific_first(home: Path) -> None:
    entries = {HOST: auth("host", "x"), f"{HOST}/a": auth("a", "x"), f"{HOST}/a/b": auth("ab", "x")}
    write(home / "run/containers/auth.json", {"auths": entries})
    variables = environ(home)
    assert user(HOST, "a/b", variables) == "ab"
    assert user(HOST, "a/b/c", variables) == "ab"
    assert user(HOST, "a/c", variables) == "a"
    assert user(HOST, "abc", variables) == "host"


def test_containers_files_in_order(home: Path) -> None:
    variables = environ(home)
    write(home / ".config/containers/auth.json", {"auths": {HOST: auth("config", "x")}})
    assert user(HOST, "a", variables) == "config"
    write(home / "run/containers/auth.json", {"auths": {HOST: auth("run", "x")}})
    assert user(HOST, "a", variables) == "run"
    variables["REGISTRY_AUTH_FILE"] = write(home / "mine.json", {"auths": {HOST: auth("mine", "x")}})
    assert user(HOST, "a", variables) == "mine"
    variables["REGISTRY_AUTH_FILE"] = str(home / "none.json")
    assert user(HOST, "a", variables) is None


def test_docker_before_containers(home: Path) -> None:
    write(home / "run/containers/auth.json", {"auths": {HOST: auth("containers", "x")}})
    assert user(HOST, "a", docker(home, auths={HOST: auth("docker", "x")})) == "docker"
    assert user(HOST, "a", docker(home, auths={})) == "containers"


def test_files_are_read_each_time(home: Path) -> None:
    variables = docker(home, auths={HOST: auth("old", "x")})
    assert user(HOST, "a", variables) == "old"
    docker(home, auths={HOST: auth("new", "x")})
    assert user(HOST, "a", variables) == "new"


def test_helpers_are_named(home: Path) -> None:
    found = lookup(HOST, "a", docker(home, auths={HOST: {}}, credsStore="desktop", credHelpers={HOST: "ecr-login"}))
    assert found == Credentials(str(home / ".docker/config.json"), helper="docker-credential-ecr-login")
    found = lookup(HOST, "a", docker(home, credsStore="desktop"))
    assert found and found.helper == "docker-credential-desktop"
    # Credentials that can be used are better than the name of a helper.
    write(home / "run/containers/auth.json", {"auths": {HOST: auth("containers", "x")}})
    assert user(HOST, "a", environ(home)) == "containers"


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '"hush"', "[" * 100_000, *(f'{{"auths": {{"{HOST}": {{"auth": "{x}"}}}}}}' for x in BROKEN)],
    ids=range(7),
)
def test_broken_files_are_named_not_quoted(home: Path, content: str) -> None:
    path = write(home / ".docker/config.json", content)
    with pytest.raises(UsageError) as caught:
        lookup(HOST, "a", environ(home))
    assert path in str(caught.value)
    assert "hush" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_binary_and_unreadable_files(home: Path) -> None:
    path = home / ".docker/config.json"
    path.parent.mkdir()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        lookup(HOST, "a", environ(home))
    path.unlink()
    path.mkdir()
    with pytest.raises(UsageError, match=f"cannot read {path}"):
        lookup(HOST, "a", environ(home))


@pytest.mark.parametrize("config", [{"auths": []}, {"auths": {HOST: 7}}, {"credHelpers": 7, "credsStore": 7}, {"x": 1}])
def test_odd_shapes_are_nothing(home: Path, config: dict[str, object]) -> None:
    assert lookup(HOST, "a", docker(home, **config)) is None


KEYS = ["auths", "auth", HOST, "credsStore", "credHelpers", "username", "password"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["auths", "auth", HOST, "credsStore"]), inner)
    ),
)


@given(json_values)
def test_any_config_is_found_or_refused(tmp_path_factory: pytest.TempPathFactory, config: object) -> None:
    home = tmp_path_factory.getbasetemp() / "any"
    write(home / ".docker/config.json", config if not isinstance(config, str) else json.dumps(config))
    try:
        lookup(HOST, "a", environ(home))
    except UsageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("content", ["pw", "pw\n", "pw\r\n", "pw\nrest\n"])
def test_password_file(tmp_path: Path, content: str) -> None:
    assert read_password_file(write(tmp_path / "p", content)).reveal() == "pw"


def test_password_file_keeps_blanks(tmp_path: Path) -> None:
    assert read_password_file(write(tmp_path / "p", " p w \n")).reveal() == " p w "


@pytest.mark.parametrize("content", ["", "\n", "\r\npw"])
def test_empty_password_file(tmp_path: Path, content: str) -> None:
    with pytest.raises(UsageError, match="empty"):
        read_password_file(write(tmp_path / "p", content))


def test_missing_password_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such password file"):
        read_password_file(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="Is a directory"):
        read_password_file(str(tmp_path))


def test_options(tmp_path: Path) -> None:
    assert from_options(None, None, None) is None
    look = from_options("me", Secret("pw"), None)
    assert look and look() == Credentials("the options", "me", Secret("pw"))
    path = write(tmp_path / "p", "one\n")
    look = from_options("me", None, path)
    write(tmp_path / "p", "two\n")
    assert look and look() == Credentials("the options", "me", Secret("two"))
    for wrong in (("me", None, None), (None, Secret("pw"), None), ("", Secret("pw"), None), (None, None, path)):
        with pytest.raises(UsageError):
            from_options(*wrong)


def test_nothing_shows_a_secret() -> None:
    held = Credentials("s", "me", Secret("hush"), Secret("hush"), Secret("hush"))
    assert "hush" not in repr(held)


# Credential helpers


def helper(home: Path, name: str, script: str) -> dict[str, str]:
    path = home / "bin" / f"docker-credential-{name}"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/sh\ncat > "{home}/asked-{name}"\n{script}\n')
    path.chmod(0o755)
    return environ(home, PATH=f"{home / 'bin'}:{os.environ['PATH']}")


def keeps(username: str, secret: str) -> str:
    return f"echo '{json.dumps({'ServerURL': 'x', 'Username': username, 'Secret': secret})}'"


NOTHING = "echo credentials not found in native keychain; exit 1"


def test_helper_of_the_host_before_the_store_before_auths(home: Path) -> None:
    helper(home, "one", keeps("one", "pw"))
    variables = helper(home, "all", keeps("all", "pw"))
    docker(home, auths={HOST: auth("file", "x"), "b": auth("file", "x")}, credHelpers={HOST: "one"}, credsStore="all")
    assert lookup(HOST, "a", variables) == Credentials("docker-credential-one", "one", Secret("pw"))
    assert user("b", "a", variables) == "all"
    assert ((home / "asked-one").read_text(), (home / "asked-all").read_text()) == (HOST, "b")
    docker(home, auths={HOST: auth("file", "x")}, credHelpers={"b": "one"})
    assert user(HOST, "a", variables) == "file"


def test_helper_that_has_nothing(home: Path) -> None:
    variables = helper(home, "one", NOTHING)
    docker(home, auths={HOST: auth("file", "x")}, credsStore="one")
    assert user(HOST, "a", variables) == "file"
    docker(home, auths={HOST: {}}, credsStore="one")
    assert lookup(HOST, "a", variables) is None


def test_identity_token_of_a_helper(home: Path) -> None:
    variables = helper(home, "one", keeps("<token>", "idt"))
    docker(home, credsStore="one")
    assert lookup(HOST, "a", variables) == Credentials("docker-credential-one", identity_token=Secret("idt"))


@pytest.mark.parametrize("key", ["docker.io", "index.docker.io", "https://index.docker.io/v1/"])
def test_helper_for_docker_hub(home: Path, key: str) -> None:
    variables = helper(home, "hub", keeps("me", "pw"))
    docker(home, credHelpers={key: "hub"})
    assert user("registry-1.docker.io", "library/x", variables) == "me"
    assert (home / "asked-hub").read_text() == "https://index.docker.io/v1/"


@pytest.mark.parametrize("content", ["", "\n", " \n\t"])
def test_an_empty_file_is_as_none(home: Path, content: str) -> None:
    write(home / ".docker/config.json", content)
    assert lookup(HOST, "org/app", environ(home)) is None


def test_helper_in_containers_auth_json(home: Path) -> None:
    variables = helper(home, "one", keeps("me", "pw"))
    write(home / "run/containers/auth.json", {"credHelpers": {HOST: "one"}})
    assert user(HOST, "a", variables) == "me"


def test_helper_that_is_not_there_is_only_named(home: Path) -> None:
    docker(home, auths={HOST: auth("file", "x")}, credsStore="none")
    assert user(HOST, "a", environ(home)) == "file"
    assert lookup("b", "a", environ(home)) == Credentials(
        str(home / ".docker/config.json"), helper="docker-credential-none"
    )


def test_helper_that_fails(home: Path) -> None:
    variables = helper(home, "one", "echo the keychain is locked; exit 1")
    docker(home, auths={HOST: auth("file", "x")}, credsStore="one")
    with pytest.raises(RegistryError, match="the keychain is locked") as caught:
        lookup(HOST, "a", variables)
    assert caught.value.temporary
    docker(home, credsStore="../one")
    with pytest.raises(UsageError, match=r"config\.json: the name of a credential helper"):
        lookup(HOST, "a", variables)

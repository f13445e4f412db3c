"""kubelet's credential providers, by real programs; and the YAML that their configuration is written in."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from pyerofs.errors import RegistryError, UsageError
from pyerofs.registry.credentials import lookup
from pyerofs.registry.provider_plugins import CONFIG, DIRECTORY, matches
from pyerofs.registry.small_yaml import parse

YAML = """\
# from the documentation
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: other
    matchImages:
    - "*.other.example"
    defaultCacheDuration: "12h"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
  - name: plugin   # the program's
    matchImages: ['*.registry.example', "registry.example:8080/path"]
    defaultCacheDuration: 0s
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args:
      - get-credentials
      - --verbose
    env:
      - name: PLUGIN_REGION
        value: eu: west
"""
PLUGIN = """#!/bin/sh
printf '%s %s' "$*" "$PLUGIN_REGION" > {where}/said
cat > {where}/request
cat <<END
{answer}
END
exit {status}
"""
Environ = Callable[..., dict[str, str]]


@pytest.fixture
def environ(tmp_path: Path) -> Environ:
    def make(answer: object, status: int = 0, config: str = YAML.replace("eu: west", '"eu: west"')) -> dict[str, str]:
        text = answer if isinstance(answer, str) else json.dumps(answer)
        (tmp_path / "config.yaml").write_text(config)
        (tmp_path / "plugin").write_text(PLUGIN.format(where=tmp_path, answer=text, status=status))
        (tmp_path / "plugin").chmod(0o755)
        home = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "REGISTRY_AUTH_FILE": str(tmp_path / "none")}
        return {**home, "PATH": "/bin:/usr/bin", CONFIG: str(tmp_path / "config.yaml"), DIRECTORY: str(tmp_path)}

    return make


def answer(**auth: dict[str, str]) -> dict[str, object]:
    return {"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "cacheKeyType": "Registry", "cacheDuration": "6h", "auth": auth}  # fmt: skip


LOGIN = {"username": "AWS", "password": "sesame"}


def test_a_plugin_is_asked_as_kubelet_asks_it(environ: Environ, tmp_path: Path) -> None:
    found = lookup("eu.registry.example", "org/app", environ(answer(**{"*.registry.example": LOGIN})))
    assert found is not None and found.password is not None
    assert (found.source, found.username, found.password.reveal()) == ("plugin", "AWS", "sesame")
    assert json.loads((tmp_path / "request").read_text()) == {
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "kind": "CredentialProviderRequest",
        "image": "eu.registry.example/org/app",
    }
    assert (tmp_path / "said").read_text() == "get-credentials --verbose eu: west"


def test_a_plugin_is_asked_for_its_images_only(environ: Environ, tmp_path: Path) -> None:
    given_ = environ(answer(**{"*.registry.example": LOGIN}))
    assert lookup("registry.other", "org/app", given_) is None
    assert not (tmp_path / "said").exists()
    assert lookup("eu.registry.example", "org/app", environ(answer())) is None
    assert lookup("eu.registry.example", "org/app", {**given_, CONFIG: ""}) is None


@pytest.mark.parametrize(
    ("pattern", "image", "fits"),
    [
        ("123.dkr.ecr.eu.amazonaws.com", "123.dkr.ecr.eu.amazonaws.com/app", True),
        ("*.azurecr.io", "x.azurecr.io/app", True),
        ("*.azurecr.io", "a.b.azurecr.io/app", False),
        ("*.*.registry.io", "a.b.registry.io/app", True),
        ("registry.io:8080/path", "registry.io:8080/path/app", True),
        ("registry.io:8080/path", "registry.io:8080/other", False),
        ("registry.io", "registry.io:8080/app", False),
        ("gcr.io", "gcr.io/app", True),
        ("app*.k8s.io", "app1.k8s.io/x", True),
    ],
)
def test_images_are_matched_as_kubelet_matches_them(pattern: str, image: str, fits: bool) -> None:
    assert matches(pattern, image) is fits


def test_a_plugin_that_fails_or_is_none_is_an_error_of_one_line(environ: Environ) -> None:
    with pytest.raises(RegistryError, match=r"^plugin failed for eu\.registry\.example/a: status 3") as failed:
        lookup("eu.registry.example", "a", environ(answer(), 3))
    assert failed.value.temporary
    for said in ("sesame", '{"auth": {"*.registry.example": {"username": 1}}}', "[]"):
        with pytest.raises(UsageError, match=r"^plugin answered with something that is no Cred") as wrong:
            lookup("eu.registry.example", "a", environ(said))
        assert "sesame" not in str(wrong.value)
    given_ = environ(answer())
    with pytest.raises(UsageError, match=r"needs PYEROFS_CREDENTIAL_PROVIDER_BIN_DIR"):
        lookup("eu.registry.example", "a", {**given_, DIRECTORY: "relative"})
    with pytest.raises(UsageError, match=r"^cannot read .*/none: No such file"):
        lookup("eu.registry.example", "a", {**given_, CONFIG: given_[DIRECTORY] + "/none"})


@pytest.mark.parametrize(
    "config", ["a: b", "providers:\n- name: x", "providers: |\n  x", "a: &b c", "\tx: y", "[]", "{"]
)
def test_a_configuration_that_cannot_be_used_is_an_error_of_one_line(environ: Environ, config: str) -> None:
    with pytest.raises(UsageError, match=r"^/.*/config\.yaml: ") as caught:
        lookup("eu.registry.example", "a", environ(answer(), 0, config))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": ["b"]}', {"a": ["b"]}),
        ("a:\n- b\n- c", {"a": ["b", "c"]}),
        ("a:\n  - b: c\n    d: 'e # f'\n  -\n    g: [h, \"i\"]", {"a": [{"b": "c", "d": "e # f"}, {"g": ["h", "i"]}]}),
        ("---\na: b # c\n\n# d\ne:", {"a": "b", "e": None}),
        ("a: it''s\nb: 'it''s'", {"a": "it''s", "b": "it's"}),
        ("a: https://x:80/y#z", {"a": "https://x:80/y#z"}),
        ("", None),
    ],
)
def test_yaml_is_read(text: str, value: object) -> None:
    assert parse(text) == value


@given(some.text(alphabet="ab:-#'\"[]{} \n&|,", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse(text)

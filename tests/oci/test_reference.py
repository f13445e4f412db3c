from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pyerofs.errors import UsageError
from pyerofs.oci.reference import Reference, check_digest

D256 = "sha256:" + "0a" * 32
D512 = "sha512:" + "0b" * 64

quick = settings(deadline=None, derandomize=True, print_blob=True, max_examples=200)


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("ubuntu", "docker.io", "library/ubuntu", "latest", None),
        ("ubuntu:22.04", "docker.io", "library/ubuntu", "22.04", None),
        ("docker.io/ubuntu", "docker.io", "library/ubuntu", "latest", None),
        ("docker.io/library/ubuntu", "docker.io", "library/ubuntu", "latest", None),
        ("index.docker.io/ubuntu:a", "docker.io", "library/ubuntu", "a", None),
        ("org/app", "docker.io", "org/app", "latest", None),
        ("test_com/foo", "docker.io", "test_com/foo", "latest", None),
        ("test.com:5000", "docker.io", "library/test.com", "5000", None),
        ("192.168.1.1:tag", "docker.io", "library/192.168.1.1", "tag", None),
        ("foo/foo_bar.com:8080", "docker.io", "foo/foo_bar.com", "8080", None),
        ("quay.io/org/app:1.0", "quay.io", "org/app", "1.0", None),
        ("localhost/x", "localhost", "x", "latest", None),
        ("localhost:5000/x/y/z", "localhost:5000", "x/y/z", "latest", None),
        ("Foo/bar", "Foo", "bar", "latest", None),
        ("test:5000/repo:tag", "test:5000", "repo", "tag", None),
        ("127.0.0.1:5000/repo:5050", "127.0.0.1:5000", "repo", "5050", None),
        ("[::1]/repo", "[::1]", "repo", "latest", None),
        ("[2001:db8::1]:5000/repo:tag", "[2001:db8::1]:5000", "repo", "tag", None),
        ("xn--n3h.com/my__image--x:_T", "xn--n3h.com", "my__image--x", "_T", None),
        (f"repo@{D256}", "docker.io", "library/repo", None, D256),
        (f"a.b/repo:tag@{D256}", "a.b", "repo", "tag", D256),
        (f"a.b/repo@{D512}", "a.b", "repo", None, D512),
        ("a.b/repo:" + "t" * 128, "a.b", "repo", "t" * 128, None),
        ("a.b/" + "a/" * 127 + "a", "a.b", "a/" * 127 + "a", "latest", None),
        ("docker://quay.io/org/app", "quay.io", "org/app", "latest", None),
        ("docker://alpine", "docker.io", "library/alpine", "latest", None),
    ],
)
def test_parse(text: str, registry: str, repository: str, tag: str | None, digest: str | None) -> None:
    reference = Reference.parse(text)
    assert reference == Reference(registry, repository, tag, digest)
    assert Reference.parse(str(reference)) == reference
    assert reference.manifest_reference == (digest or tag)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not an image name"),
        (":tag", "not an image name"),
        ("docker://", "not an image name"),
        ("docker.io/", "not an image name"),
        ("quay.io/", "not an image name"),
        (f"@{D256}", "not an image name"),
        ("repo@sha256:ffff", "not a digest"),
        ("repo@sha256:" + "F" * 64, "not a digest"),
        ("repo@md5:" + "f" * 64, "not a digest"),
        ("repo@" + "f" * 64, "not a digest"),
        ("repo@sha512:" + "f" * 64, "not a digest"),
        (f"repo@{D256}\n", "not a digest"),
        ("repo@", "not a digest"),
        ("f" * 64, "bare image ID"),
        ("Uppercase:tag", "lower case"),
        ("test:5000/Uppercase/lower", "lower case"),
        ("aa/asdf$$^/aa", "not a repository"),
        ("a//b", "not a repository"),
        ("a/b/", "not a repository"),
        ("a.b/a..b", "not a repository"),
        ("a.b/a___b", "not a repository"),
        ("a.b/-a", "not a repository"),
        ("ubuntu ", "not a repository"),
        ("a.b/repo:", "not a tag"),
        ("a.b/repo:-x", "not a tag"),
        ("a.b/repo:t\u00e9", "not a tag"),
        ("a.b/repo:tag\n", "not a tag"),
        ("a.b/repo:" + "t" * 129, "not a tag"),
        ("a.b/" + "a/" * 128 + "a", "at most 255"),
        ("a.b:0/x", "not a port"),
        ("a.b:65536/x", "not a port"),
        ("a.b:x/x", "not a registry"),
        ("a.b:/x", "not a registry"),
        (".b/x", "not a registry"),
        ("a_b.c/x", "not a registry"),
        ("repo:tag/x", "not a registry"),
        ("[::1/x", "not a registry"),
        ("[1:2]/x", "not a registry"),
        ("[fe80::1%eth0]:5000/repo", "not a registry"),
        ("[2001:db8::1]:5000", "not a"),
        ("http://localhost:5000/x:1", "write 'localhost:5000/x:1' and add -o oci.insecure"),
        ("https://quay.io/org/app", "write 'quay.io/org/app'"),
        ("oci://quay.io/org/app", "write 'quay.io/org/app'"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Reference.parse(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["https://me:hunter2@quay.io/org/app", "me:hunter2@quay.io/org/app"])
def test_a_password_in_the_name_is_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Reference.parse(text)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "host"),
    [("alpine", "registry-1.docker.io"), ("quay.io/a/b", "quay.io"), ("[::1]:5000/a", "[::1]:5000")],
)
def test_host(text: str, host: str) -> None:
    assert Reference.parse(text).host == host


def test_check_digest() -> None:
    assert check_digest(D256) == check_digest(D256.removeprefix("sha256:")) == D256
    assert check_digest(D512) == D512
    for bad in ("", "sha256:", "sha256:" + "0" * 63, "SHA256:" + "0" * 64, "A" * 64, D256 + "\n", "sha384:" + "0" * 96):
        with pytest.raises(UsageError, match="not a digest"):
            check_digest(bad)


@given(st.text() | st.text("aA0.:/@[]-_", max_size=30))
@example("a" * 50_000 + "!")
@example("a-" * 50_000)
@quick
def test_any_text_is_a_reference_or_a_usage_error(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert Reference.parse(str(reference)) == reference


@given(
    st.sampled_from(["", "docker.io/", "localhost/", "A/", "a.b:5000/", "[::1]:1/"]),
    st.from_regex(r"\A[a-z0-9]{1,4}((\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}(/[a-z0-9]{1,4}){0,3}\Z"),
    st.none() | st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z"),
    st.none() | st.sampled_from([D256, D512]),
)
@quick
def test_round_trip(registry: str, repository: str, tag: str | None, digest: str | None) -> None:
    text = registry + repository + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    try:
        reference = Reference.parse(text)
    except UsageError:
        # A first component with a dot is a host, and not every name with a dot is one.
        assert not registry and "/" in repository and "." in repository.partition("/")[0]
        return
    assert Reference.parse(str(reference)) == reference
    assert (reference.tag, reference.digest) == (tag if tag or digest else "latest", digest)
    assert reference.repository.endswith(repository) or reference.registry + "/" + reference.repository == repository

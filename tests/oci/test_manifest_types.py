"""Media types in manifests, and of answers that are none."""

from __future__ import annotations

import json

import pytest

from pyerofs.errors import ImageError
from pyerofs.oci.manifest import OCI_MANIFEST, Manifest, is_image_config, parse
from tests.support.images import digest_of


@pytest.mark.parametrize(("media_type", "error"), [
    ("text/html; charset=utf-8", "the answer is not a manifest but of the type text/html: is this a registry?"),
    ("application/xml", "the answer is not a manifest but of the type application/xml"),
    (OCI_MANIFEST, "the manifest is not JSON"), (None, "the manifest is not JSON"), ("", "the manifest is not JSON"),
    ("a\x1b/b\n", "of the type a\\\\x1b/b: is"),
])  # fmt: skip
def test_a_login_page_is_called_what_it_is(media_type: str | None, error: str) -> None:
    with pytest.raises(ImageError, match=error) as caught:
        parse(b"<html>Log in</html>", media_type)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["", None, "text/html", "text/html; charset=utf-8", "application/octet-stream"])
def test_a_config_may_have_no_type_of_its_own(kind: str | None) -> None:
    config = {"mediaType": kind, "digest": digest_of(b""), "size": 0}
    found = parse(json.dumps({"schemaVersion": 2, "layers": [], "config": config}).encode())
    assert isinstance(found, Manifest) and found.config is not None
    assert found.config.media_type == (kind or "") and is_image_config(found.config)


@pytest.mark.parametrize("kind", ["no type", "text/html\n", "text/html;\n", "x"])
def test_a_type_that_is_none_is_refused(kind: str) -> None:
    config = {"mediaType": kind, "digest": digest_of(b""), "size": 0}
    with pytest.raises(ImageError, match=r"config\.mediaType is"):
        parse(json.dumps({"schemaVersion": 2, "layers": [], "config": config}).encode())

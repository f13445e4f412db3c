"""What is fed with anything: each target takes bytes and must end in a value or in the error that is documented.

`fuzz.py` runs them for long with coverage feedback (atheris), `test_fuzz.py` for a moment in each test run.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable

from pyerofs.config import options
from pyerofs.erofs import chunk_index as erofs_chunk_index
from pyerofs.erofs.compose import compose
from pyerofs.errors import AuthError, ImageError, RegistryError, UsageError
from pyerofs.http import proxy, url
from pyerofs.http.answer import (
    Headers,
    Response,
    content_range,
    explanation,
    http_date,
    iso_date,
    presigned_lifetime,
    retry_after,
)
from pyerofs.http.transport import Transport
from pyerofs.oci import manifest
from pyerofs.oci.raw_manifest import digest_of
from pyerofs.oci.reference import Reference, is_digest
from pyerofs.registry import credential_helper, credentials, hosts
from pyerofs.registry.auth import Authorizer, parse_challenges
from pyerofs.registry.range_response import RangeResponse
from pyerofs.registry.redirect import next_hop
from pyerofs.tar.reader import Tar
from pyerofs.tar.toc.model import TocError
from pyerofs.tar.toc.ztoc import read_ztoc, unpack_ztoc
from tests.support import tocs, ztocs
from tests.support.lazyimages import LazyLayer, chunked_layer, stargz_layer
from tests.support.tarballs import archive, info

_DIRECTORY = tempfile.mkdtemp(prefix="pyerofs-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
atexit.register(shutil.rmtree, _DIRECTORY, ignore_errors=True)
_CONFIG = f"{_DIRECTORY}/config.json"
_REGISTRY = url.parse("https://registry.example/v2")
_AUTHORIZER = Authorizer(Transport(), _REGISTRY, "org/app", lambda: None)
_DIGEST = "sha256:" + "ab" * 32
_SIZE, _OFFSET, _LENGTH = 300_000, 1000, 50_000


def _one_line(error: Exception) -> None:
    assert "\n" not in str(error)


def challenge(data: bytes) -> None:
    found = parse_challenges([line.decode("latin-1") for line in data.split(b"\n")])
    for each in found:
        assert each.scheme == each.scheme.lower()
        try:
            realm = _AUTHORIZER._realm(each.parameters.get("realm", ""))
        except AuthError as error:
            _one_line(error)
        else:
            assert realm.scheme == "https" and not url.is_link_local(realm.host)
    try:
        assert _AUTHORIZER._choose(found).scheme in ("basic", "bearer")
    except AuthError as error:
        _one_line(error)


def reference(data: bytes) -> None:
    try:
        found = Reference.parse(data.decode("utf-8", "surrogateescape"))
    except UsageError as error:
        _one_line(error)
        return
    assert Reference.parse(str(found)) == found
    assert found.tag or found.digest
    url.parse(f"https://{found.host}/v2/{found.repository}/manifests/{found.manifest_reference}")


def image_manifest(data: bytes) -> None:
    for media_type in (None, *sorted(manifest.MEDIA_TYPES)[:2]):
        try:
            found = manifest.parse(data, media_type or "")
            if isinstance(found, manifest.Manifest):
                for part in compose(found):
                    layer = part.descriptor
                    assert layer.size > 0 and is_digest(layer.digest) and found.layers[part.layer] == layer
        except ImageError as error:
            _one_line(error)


def hosts_toml(data: bytes) -> None:
    try:
        config = hosts._HostsFile(f"{_DIRECTORY}/hosts.toml", data.decode("utf-8", "replace")).config()
    except UsageError as error:
        _one_line(error)
        return
    for place in (*config.mirrors, config.server):
        assert place.capabilities and (place.url is None or not place.url.query)
        for name, value in place.headers:
            assert f"{name}{value.reveal()}".isprintable()


def docker_config(data: bytes) -> None:
    with open(_CONFIG, "wb") as file:
        file.write(data)
    environ = {"DOCKER_CONFIG": _DIRECTORY, "REGISTRY_AUTH_FILE": _CONFIG, "HOME": _DIRECTORY, "PATH": "/nonexistent"}
    for host in ("registry.example:5000", "docker.io"):
        try:
            found = credentials.lookup(host, "org/app", environ)
        except (UsageError, RegistryError) as error:
            _one_line(error)
        else:
            assert found is None or found.helper or found.username or found.identity_token or found.registry_token


def helper_answer(data: bytes) -> None:
    try:
        kept = credential_helper._read("docker-credential-x", data)
    except UsageError as error:
        _one_line(error)
    else:
        assert kept is None or (kept.username and kept.secret.reveal())


def range_head(data: bytes) -> None:
    """Header lines of an answer to a range request: a body is only let in where all that was stated fits."""
    headers = Headers()
    status = 200 if data[:1] < b"\x40" else 206
    for line in data[1:].split(b"\n"):
        headers.add_line(line)
    answer = RangeResponse(_DIGEST, _SIZE, _OFFSET, _LENGTH, lambda offset, piece: True, None, None)
    head = Response(_REGISTRY, status, headers)
    usable = answer.usable(head)
    stated = content_range(headers.combined("content-range"))
    if usable and status == 206:
        assert stated is not None
        assert stated[:2] == (_OFFSET, _OFFSET + _LENGTH - 1) and stated[2] in (None, _SIZE)
    if usable:
        assert (
            headers.combined("content-encoding") in (None, "")
            or "identity" in str(headers.combined("content-encoding")).lower()
        )
    try:
        answer.finish(head)
    except RegistryError as error:
        _one_line(error)
    else:
        raise AssertionError("no byte came, and that was taken for the range")
    finally:
        answer.close()


def range_value(data: bytes) -> None:
    text = data.decode("latin-1")
    found = content_range(text)
    assert found is None or all(number is None or 0 <= number < 10**19 for number in found)
    for seconds in (retry_after(text, 1.7e9), http_date(text), iso_date(text)):
        assert seconds is None or isinstance(seconds, float)


def location(data: bytes) -> None:
    """A Location header: where it leads is https, and no metadata service; and what libcurl gets is what we read."""
    headers = Headers()
    headers.add_line(b"Location: " + data)
    response = Response(_REGISTRY._replace(target="/v2/org/app/blobs/x"), 307, headers)
    try:
        found = next_hop(response, _REGISTRY)
    except RegistryError as error:
        _one_line(error)
        return
    assert found.scheme == "https" and not url.is_link_local(found.host)
    assert url.parse(str(found)) == found
    lifetime = presigned_lifetime(found, 1.7e9)
    assert lifetime is None or isinstance(lifetime, float)


def error_body(data: bytes) -> None:
    text = explanation(Response(_REGISTRY, 500, Headers(), data))
    assert text.isprintable() and len(text) < 300


def option_string(data: bytes) -> None:
    try:
        found = options.parse_mount_options([data.decode("utf-8", "surrogateescape")])
    except UsageError as error:
        _one_line(error)
    else:
        assert found.oci.timeout > 0


def proxy_url(data: bytes) -> None:
    text = data.decode("latin-1")
    proxy.is_excluded(_REGISTRY, text)
    try:
        proxy.parse(text, "x")
    except UsageError as error:
        _one_line(error)


def chunk_index(data: bytes) -> None:
    try:
        index = erofs_chunk_index.parse(
            data, erofs_chunk_index.IndexLocation(1 << 20, (1 << 20) + len(data), digest_of(data), False)
        )
    except ImageError as error:
        _one_line(error)
    else:
        chunks = [index.chunk(number) for number in range(len(index))] if index else []
        assert index is None or sum(chunk.length for chunk in chunks) == index.size


def tar_archive(data: bytes) -> None:
    """The first header's checksum is put right, or nothing would ever come behind it."""
    if len(data) >= 512:
        blank = data[:148] + b" " * 8 + data[156:]
        data = data[:148] + b"%06o\0 " % sum(blank[:512]) + data[156:]
    tar = Tar(io.BytesIO(data).read)
    try:
        for entry in tar:
            end = 0
            for offset, piece in tar.data():
                assert end <= offset < offset + len(piece) <= entry.size
                end = offset + len(piece)
    except ImageError as error:
        _one_line(error)


def toc(data: bytes) -> None:
    """The JSON of a TOC, as both formats have it."""
    for codec in ("gzip", "zstd"):
        layer = tocs.with_toc(data, codec)
        try:
            found, entries = tocs.read(layer)
        except TocError as error:
            _one_line(error)
        else:
            tocs.assert_sound(found, entries, len(layer.blob))


def toc_layer(data: bytes) -> None:
    """A line of annotations in JSON, and a blob behind it: its end, or what the annotations say is there."""
    line, _, blob = data.partition(b"\n")
    try:
        annotations = {str(key): str(value) for key, value in json.loads(line).items()}
    except (ValueError, AttributeError, RecursionError):
        return
    for media_type in ("x.tar+gzip", "x.tar+zstd"):
        layer = LazyLayer(blob, media_type, annotations)
        try:
            found, entries = tocs.read(layer)
        except TocError as error:
            _one_line(error)
        else:
            tocs.assert_sound(found, entries, len(blob))


def ztoc(data: bytes) -> None:
    """The blob has as many bytes as that of the samples."""
    try:
        found = read_ztoc(unpack_ztoc(data), ztocs.SAMPLE_SIZE, data[:200])
        entries = list(found.entries)
    except TocError as error:
        _one_line(error)
        return
    ztocs.assert_sound(found, entries, ztocs.SAMPLE_SIZE)


def _toc_samples() -> tuple[bytes, ...]:
    digest = _DIGEST
    file = {"name": "f", "type": "reg", "size": 9, "digest": digest, "offset": 5, "modtime": "2020-09-13T12:26:40.5Z"}
    first = {**file, "chunkSize": 4, "chunkDigest": digest}
    rest = {"name": "f", "type": "chunk", "chunkOffset": 4, "chunkSize": 5, "chunkDigest": digest, "offset": 50}
    zeros = {**rest, "chunkType": "zeros"}
    shared = {"name": "g", "type": "reg", "size": 3, "digest": digest, "offset": 50, "innerOffset": 9}
    link = {"name": "l", "type": "hardlink", "linkName": "f"}
    odd = {"name": "d/", "type": "dir", "mode": 493, "uid": 1, "gid": 2, "xattrs": {"user.x": "eA=="}}
    node = {"name": "n", "type": "char", "devMajor": 1, "devMinor": 3}
    landmark = {**file, "name": ".prefetch.landmark", "size": 1}
    lists = (
        [odd, file, link],
        [first, rest],
        [{**first, "endOffset": 90}, zeros, node],
        [first, rest, shared],
        [landmark],
    )
    return tuple(_json(version=1, entries=entries) for entries in lists)


def _toc_layer_samples() -> tuple[bytes, ...]:
    tar = archive((info("f"), b"hello"))
    layers = stargz_layer(tar), chunked_layer(tar), stargz_layer(tar, zstd=True), stargz_layer(tar, footer="old")
    return tuple(json.dumps(layer.annotations).encode() + b"\n" + layer.blob for layer in layers)


def _tar_header(**fields: bytes) -> bytes:
    """A pax header or a file of GNU tar, with five bytes."""
    kind, rest = fields.get("kind", b"0"), fields.get("rest", b"")
    head = b"name".ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"00000000012\0" + b"00000000000\0"
    return (head + b" " * 8 + kind + bytes(100) + b"ustar  \0" + rest).ljust(512, b"\0") + b"9 a=bcde\n\n".ljust(
        512, b"\0"
    )


def _json(**members: object) -> bytes:
    return json.dumps(members).encode()


_LAYER = {"mediaType": "application/vnd.erofs", "digest": _DIGEST, "size": 4096}

# name: (target, what it is made from)
TARGETS: dict[str, tuple[Callable[[bytes], None], tuple[bytes, ...]]] = {
    "challenge": (
        challenge,
        (
            b'Bearer realm="https://auth.example/token",service="registry",scope="repository:org/app:pull"',
            b'Basic realm="x", Bearer realm=https://a/b',
            b"Negotiate YWJj==, Digest a=b",
        ),
    ),
    "reference": (
        reference,
        (
            b"registry.example:5000/org/app:1.0",
            b"app",
            b"[::1]:5000/a/b@" + _DIGEST.encode(),
            b"docker://localhost/x:y",
        ),
    ),
    "manifest": (
        image_manifest,
        (
            _json(
                schemaVersion=2, mediaType="application/vnd.oci.image.manifest.v1+json", config=_LAYER, layers=[_LAYER]
            ),
            _json(schemaVersion=2, manifests=[{**_LAYER, "platform": {"os": "linux", "architecture": "amd64"}}]),
        ),
    ),
    "hosts.toml": (
        hosts_toml,
        (
            b'server = "https://a.example"\n[host."https://b.example"]\ncapabilities = ["pull"]\nskip_verify = true\n',
            b'[host."http://c"]\nclient = [["a", "b"]]\ndial_timeout = "1.5s"\n[host."http://c".header]\nx = ["y"]\n',
            b'override_path = false\nca = "ca.pem"\nproxy = "http://p"\n',
        ),
    ),
    "docker config": (
        docker_config,
        (
            _json(auths={"registry.example:5000": {"auth": "bWU6aHVzaA=="}}, credsStore="x"),
            _json(auths={"https://index.docker.io/v1/": {"identitytoken": "t"}}, credHelpers={"docker.io": "y"}),
        ),
    ),
    "helper": (helper_answer, (_json(ServerURL="x", Username="me", Secret="s"),)),
    "range head": (
        range_head,
        (
            b'\xffContent-Range: bytes 1000-50999/300000\nContent-Length: 50000\nETag: "x"\n',
            b"\x00Content-Length: 300000\nContent-Encoding: identity\nDocker-Content-Digest: sha256:x\n",
        ),
    ),
    "range value": (range_value, (b"bytes 0-1/2", b"Tue, 14 Nov 2023 22:13:20 GMT", b"20231114T221320Z", b"120")),
    "location": (
        location,
        (b"https://cdn.example/x?X-Amz-Date=20231114T221320Z&X-Amz-Expires=300", b"/v2/x", b"//h/y", b"../z"),
    ),
    "error body": (error_body, (_json(errors=[{"code": "DENIED", "message": "no"}]), _json(error="x"))),
    "options": (
        option_string,
        (b'oci=0,oci.platform=linux/amd64,oci.mirror=http://m,"x",ro', b"oci.timeout=1m,nosuid"),
    ),
    "chunk index": (chunk_index, (erofs_chunk_index.build(io.BytesIO(bytes(9000)).read, 4096),)),
    "tar": (tar_archive, (_tar_header(), _tar_header(kind=b"x"), _tar_header(kind=b"S", rest=bytes(130) + b"0" * 36))),
    "toc": (toc, _toc_samples()),
    "toc layer": (toc_layer, _toc_layer_samples()),
    "ztoc": (ztoc, ztocs.samples()),
    "proxy": (proxy_url, (b"http://me:pw@proxy:3128", b"10.0.0.0/8,.example,[::1]:80,*")),
}

"""Pushing: in pieces, resumed where the registry has come to; against a fake that breaks, and a real one."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyerofs.errors import AuthError, RegistryError, UsageError
from pyerofs.http.request import Content
from pyerofs.http.transport import Transport
from pyerofs.registry import upload
from pyerofs.registry.client import Registry
from pyerofs.registry.credentials import Credentials
from pyerofs.registry.hosts import Host, HostConfig
from pyerofs.registry.upload import Uploads, scopes
from pyerofs.secret import Secret
from tests.support.dockerregistry import DockerRegistry
from tests.support.needs import need
from tests.support.sinks import into
from tests.support.tokenserver import TokenServer
from tests.support.uploadregistry import Cut, Refuse, UploadRegistry

PIECE = 100_000
DATA = random.Random(7).randbytes(5 * PIECE + 77)
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
OTHER = DATA[::-1]
OTHER_DIGEST = f"sha256:{hashlib.sha256(OTHER).hexdigest()}"
SMALL = b"small"
SMALL_DIGEST = f"sha256:{hashlib.sha256(SMALL).hexdigest()}"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
ME = Credentials("the options", "me", Secret("hush"))


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "pause", lambda seconds, cancel: None)


@pytest.fixture
def fake() -> Iterator[UploadRegistry]:
    with UploadRegistry() as registry:
        yield registry


def pushing(host: str, repository: str = "x", *, me: bool = False, mount_from: str = "") -> Uploads:
    look_up = (lambda: ME) if me else (lambda: None)
    wanted = scopes(repository, mount_from)
    return Uploads(Registry(host, repository, Transport(), credentials=look_up, scopes=wanted), piece=PIECE)


def test_in_pieces(fake: UploadRegistry) -> None:
    told: list[int] = []
    pushing(fake.host).put_blob(DIGEST, Content.of(DATA), told.append)
    assert fake.blobs == {DIGEST: DATA}
    assert [asked.range for asked in fake.sent("PATCH")] == [
        f"{start}-{min(start + PIECE, len(DATA)) - 1}" for start in range(0, len(DATA), PIECE)
    ]
    assert [asked.length for asked in fake.sent("PUT")] == [0]
    assert told == sorted(told)
    assert told[-1] == len(DATA)


def test_small_ones_take_one_piece(fake: UploadRegistry) -> None:
    uploads = pushing(fake.host)
    assert not uploads.has_blob(SMALL_DIGEST)
    uploads.put_blob(SMALL_DIGEST, Content.of(SMALL))
    uploads.put_blob(f"sha256:{hashlib.sha256(b'').hexdigest()}", Content.of(b""))
    assert uploads.has_blob(SMALL_DIGEST)
    assert not fake.sent("PATCH")
    assert [asked.length for asked in fake.sent("PUT")] == [5, 0]


@pytest.mark.parametrize("kept", [0, 1, 777, PIECE - 1, PIECE])
def test_resumed_where_it_broke(fake: UploadRegistry, kept: int) -> None:
    fake.script(Cut(None), Cut(kept), Cut(None), Cut(kept // 2))
    pushing(fake.host).put_blob(DIGEST, Content.of(DATA))
    assert fake.blobs == {DIGEST: DATA}
    starts = [int(asked.range.split("-")[0]) for asked in fake.sent("PATCH")]
    assert starts[:3] == [0, PIECE, PIECE + kept]
    assert starts[3:5] == [min(2 * PIECE + kept, starts[3]), starts[3] + kept // 2]
    assert len(fake.sent("POST")) == 1


def test_begun_anew_where_the_registry_forgets() -> None:
    with UploadRegistry(forgets=True) as fake:
        fake.script(Cut(None), Cut(500))
        pushing(fake.host).put_blob(DIGEST, Content.of(DATA))
        assert fake.blobs == {DIGEST: DATA}
        assert len(fake.sent("POST")) == 2


def test_refusals_that_pass(fake: UploadRegistry) -> None:
    fake.script(Refuse(503), Refuse(429), Cut(None), Refuse(416), Refuse(500))
    pushing(fake.host).put_blob(DIGEST, Content.of(DATA))
    assert fake.blobs == {DIGEST: DATA}


def test_it_gives_up(fake: UploadRegistry) -> None:
    fake.script(*[Refuse(503)] * 100)
    with pytest.raises(RegistryError, match=f"blob {DIGEST}: 503"):
        pushing(fake.host).put_blob(DIGEST, Content.of(DATA))
    assert len(fake.sent("PATCH")) == upload.ATTEMPTS
    with pytest.raises(RegistryError, match="503"):
        pushing(fake.host).put_blob(SMALL_DIGEST, Content.of(SMALL))


def test_as_long_as_it_goes_forward(fake: UploadRegistry) -> None:
    fake.script(*[Cut(PIECE // 4)] * 2 * upload.ATTEMPTS)
    pushing(fake.host).put_blob(DIGEST, Content.of(DATA))
    assert fake.blobs == {DIGEST: DATA}


@pytest.mark.parametrize("data", [DATA, SMALL])
@pytest.mark.parametrize("last", [Cut(0), Cut(None), Refuse(500), Refuse(404)])
def test_the_end_fails(fake: UploadRegistry, data: bytes, last: Cut | Refuse) -> None:
    """Cut(None): the registry has put it away, and its answer is lost."""
    if data is DATA:
        fake.script(*[Cut(None)] * 6)
    fake.script(last)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    pushing(fake.host).put_blob(digest, Content.of(data))
    assert fake.blobs == {digest: data}
    if last == Cut(None):
        assert len(fake.sent("POST")) == 1


def test_a_wrong_digest_is_final(fake: UploadRegistry) -> None:
    with pytest.raises(RegistryError, match="400"):
        pushing(fake.host).put_blob(SMALL_DIGEST, Content.of(b"other"))
    assert len(fake.sent("PUT")) == 1


def test_a_registry_without_pieces() -> None:
    with UploadRegistry(pieces=False) as fake:
        pushing(fake.host).put_blob(DIGEST, Content.of(DATA))
        assert fake.blobs == {DIGEST: DATA}
        assert [asked.length for asked in fake.sent("PUT")] == [len(DATA)]


# Registries whose word for what they have cannot be believed


def test_a_range_that_stays_at_the_first_piece() -> None:
    """As ECR's: 201, all is stored, and a piece that is sent once more is refused."""
    with UploadRegistry(ranges=lambda has, first: first, patched=201) as fake:
        uploads = pushing(fake.host)
        uploads.put_blob(DIGEST, Content.of(DATA))
        assert fake.blobs == {DIGEST: DATA}
        assert len(fake.sent("PATCH")) <= 6 + 2 * upload.STALLS
        fake.asked.clear()
        uploads.put_blob(OTHER_DIGEST, Content.of(OTHER))  # it is known now
        assert fake.blobs[OTHER_DIGEST] == OTHER
        assert [len(fake.sent(method)) for method in ("POST", "PATCH", "GET", "PUT")] == [1, 6, 0, 1]


@pytest.mark.parametrize("status_known", [True, False])
@pytest.mark.parametrize("kept", [0, 1, PIECE // 2])
def test_pieces_that_are_thrown_away(kept: int, status_known: bool) -> None:
    """What it then says is true, and yet pieces lead nowhere, or hardly; the blob as a whole does."""
    with UploadRegistry(keeps=lambda length: min(kept, length), status_known=status_known) as fake:
        pushing(fake.host).put_blob(DIGEST, Content.of(DATA))
        assert fake.blobs == {DIGEST: DATA}
        assert sum(asked.length for asked in fake.sent("PATCH")) <= 4 * len(DATA)


@pytest.mark.parametrize("said", [0, PIECE // 2, 5 * PIECE, 10 * PIECE])
def test_a_range_that_never_moves(said: int) -> None:
    with UploadRegistry(ranges=lambda has, first: said) as fake:
        pushing(fake.host).put_blob(DIGEST, Content.of(DATA))
        assert fake.blobs == {DIGEST: DATA}
        assert sum(asked.length for asked in fake.sent("PATCH")) <= 4 * len(DATA)


def misfortunes(rng: random.Random) -> list[Cut | Refuse]:
    return [Cut(rng.randrange(PIECE)), Cut(None), Refuse(503), Refuse(416)]


def test_registries_of_all_sorts_at_random() -> None:
    """Whatever they keep of a piece and say of it: the blob comes to lie there, and not much more is sent."""
    for seed in range(60):
        rng = random.Random(seed)
        keep, lie = rng.choice([0.0, 0.2, 0.9]), rng.choice([0.0, 0.2, 0.9])

        def keeps(length: int, rng: random.Random = rng, keep: float = keep) -> int:
            return rng.randrange(length + 1) if rng.random() < keep else length

        def ranges(has: int, first: int, rng: random.Random = rng, lie: float = lie) -> int:
            return rng.choice([0, first, has // 2, has + 1, 9 * len(DATA)]) if rng.random() < lie else has

        patched, put = rng.choice([201, 202, 204]), rng.choice([200, 201, 202, 204])
        known, head, drops = rng.random() < 0.5, rng.choice([0, 0, 405]), rng.randrange(3)
        if head:
            drops = 0  # nobody could know
        with UploadRegistry(
            keeps=keeps, ranges=ranges, patched=patched, put=put, head=head, status_known=known, drops=drops
        ) as fake:
            steps = [rng.choice(misfortunes(rng)) for _ in range(4)]
            fake.script(*steps)
            if put == 201:
                fake.drops = 0
            pushing(fake.host).put_blob(DIGEST, Content.of(DATA))
            assert fake.blobs == {DIGEST: DATA}, seed
            assert sum(asked.length for asked in fake.asked) <= 12 * len(DATA), seed


# What they answer beside the words of the specification


@pytest.mark.parametrize("head", [400, 405, 501])
def test_a_registry_without_head(head: int) -> None:
    with UploadRegistry(head=head) as fake:
        uploads = pushing(fake.host)
        assert not uploads.has_blob(SMALL_DIGEST)
        assert not uploads.has_manifest(SMALL_DIGEST, MANIFEST)
        uploads.put_blob(SMALL_DIGEST, Content.of(SMALL))
        assert fake.blobs == {SMALL_DIGEST: SMALL}


@pytest.mark.parametrize("drops", [0, 1])
@pytest.mark.parametrize("put", [200, 202, 204])
def test_any_success_is_looked_at(put: int, drops: int) -> None:
    with UploadRegistry(put=put, drops=drops) as fake:
        pushing(fake.host).put_blob(SMALL_DIGEST, Content.of(SMALL))
        assert fake.blobs == {SMALL_DIGEST: SMALL}
        assert len(fake.sent("PUT")) == 1 + drops
        fake.drops = drops
        pushing(fake.host).put_manifest("1.0", b"{}", MANIFEST)
        assert fake.manifests["1.0"] == (MANIFEST, b"{}")
        assert len(fake.sent("PUT")) == 2 * (1 + drops)


def test_a_registry_that_forgets_all_that_it_takes() -> None:
    with UploadRegistry(put=200, drops=100) as fake, pytest.raises(RegistryError, match=r"taken \(200\), but is not"):
        pushing(fake.host).put_blob(SMALL_DIGEST, Content.of(SMALL))


def test_the_least_piece_of_a_registry() -> None:
    with UploadRegistry(least=2 * PIECE) as fake:
        pushing(fake.host).put_blob(DIGEST, Content.of(DATA))
        assert [asked.length for asked in fake.sent("PATCH")] == [2 * PIECE, 2 * PIECE, PIECE + 77]


def test_an_error_of_the_reader_comes_out(fake: UploadRegistry) -> None:
    def read(_offset: int, _count: int) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        pushing(fake.host).put_blob(DIGEST, Content(len(DATA), read))


def test_hosts_toml_may_forbid_it(fake: UploadRegistry) -> None:
    config = HostConfig(server=Host(capabilities=frozenset(("pull", "resolve"))))
    registry = Registry(fake.host, "x", Transport(), credentials=lambda: None, config=config)
    with pytest.raises(UsageError, match="nothing may be pushed"):
        Uploads(registry)


# Debian's docker-registry


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DockerRegistry]:
    need("docker-registry", "docker-registry")
    with DockerRegistry(tmp_path / "server") as server:
        yield server


def test_real_registry(server: DockerRegistry) -> None:
    uploads = pushing(server.host, "org/app")
    for data, digest in ((DATA, DIGEST), (SMALL, SMALL_DIGEST)):
        assert not uploads.has_blob(digest)
        uploads.put_blob(digest, Content.of(data))
        assert uploads.has_blob(digest)
    body = b'{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"a/b","digest":"%s","size":5},"layers":[]}' % (
        MANIFEST.encode(),
        SMALL_DIGEST.encode(),
    )
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert not uploads.has_manifest(digest, MANIFEST)
    uploads.put_manifest("1.0", body, MANIFEST)
    assert uploads.has_manifest(digest, MANIFEST)


def test_real_registry_goes_away_and_comes_back(server: DockerRegistry) -> None:
    """The connection breaks in the middle of the third piece."""
    broken = False

    def read(offset: int, count: int) -> bytes:
        nonlocal broken
        if offset > 2.5 * PIECE and not broken:
            broken = True
            server.restart()
        return DATA[offset : offset + count]

    pushing(server.host, "org/app").put_blob(DIGEST, Content(len(DATA), read))
    assert broken
    got = bytearray()
    blob = Registry(server.host, "org/app", Transport(), credentials=lambda: None).blob(DIGEST, len(DATA))
    blob.read_range(0, len(DATA), into(got))
    assert got == DATA


def test_real_mount_from_another_repository(server: DockerRegistry) -> None:
    pushing(server.host, "org/app").put_blob(DIGEST, Content.of(DATA))
    other = pushing(server.host, "org/other", mount_from="org/app")
    assert not other.has_blob(DIGEST)
    assert other.mount_blob(DIGEST, "org/app")
    assert other.has_blob(DIGEST)
    assert not other.mount_blob(SMALL_DIGEST, "org/app")


def in_order(scopes: list[str]) -> list[str]:
    """The registry names the actions of a scope in any order."""
    parts = [scope.rpartition(":") for scope in scopes]
    return sorted(f"{name}:{','.join(sorted(actions.split(',')))}" for name, _, actions in parts)


def test_real_token(tmp_path: Path) -> None:
    need("openssl", "openssl")
    with (
        TokenServer(tmp_path, users={"me": "hush"}) as tokens,
        DockerRegistry(tmp_path / "server", token=tokens) as server,
    ):
        uploads = pushing(server.host, "org/app", me=True)
        assert not uploads.has_blob(DIGEST)
        uploads.put_blob(DIGEST, Content.of(DATA))
        assert [in_order(asked.scopes) for asked in tokens.asked] == [["repository:org/app:pull,push"]]
        other = pushing(server.host, "org/other", me=True, mount_from="org/app")
        assert other.mount_blob(DIGEST, "org/app")
        assert in_order(tokens.asked[-1].scopes) == ["repository:org/app:pull", "repository:org/other:pull,push"]


def test_real_token_that_may_only_pull(tmp_path: Path) -> None:
    need("openssl", "openssl")
    with TokenServer(tmp_path) as tokens, DockerRegistry(tmp_path / "server", token=tokens) as server:
        uploads = pushing(server.host, "org/app")
        assert not uploads.has_blob(DIGEST)
        with pytest.raises(AuthError, match="401"):
            uploads.put_blob(DIGEST, Content.of(DATA))


def test_real_basic(tmp_path: Path) -> None:
    with DockerRegistry(tmp_path, htpasswd=("me", "hush")) as server:
        pushing(server.host, "org/app", me=True).put_blob(DIGEST, Content.of(DATA))
        with pytest.raises(AuthError, match="needs a user name"):
            pushing(server.host, "org/app").put_blob(DIGEST, Content.of(DATA))

"""The page's API: what it finds, and what it refuses."""

import asyncio
import io
import pathlib
import shutil
import socket
import threading

import httpx
import numpy as np
import pytest
from fastapi import HTTPException
from page_index import COLOURS, POINTS, QUOTES, make_index
from PIL import Image
from starlette.testclient import TestClient
from test_hostile_files import claimed_png

from proxynca_jax import Index, serve
from proxynca_jax.errors import UserError
from proxynca_jax.page import pictures, upload
from proxynca_jax.page import queue as queues
from proxynca_jax.page.app import make_app
from proxynca_jax.page.guard import LOCAL_NAMES

PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def index(folder: pathlib.Path) -> Index:
    return make_index(folder)


@pytest.fixture(scope="module")
def client(index: Index) -> TestClient:
    return TestClient(make_app(index, LOCAL_NAMES), base_url="http://localhost:8000")


def photograph(folder: pathlib.Path, label: str = "plain") -> bytes:
    return (folder / "photographs" / label / "0.png").read_bytes()


def refused(answer: httpx.Response, status: int) -> str:
    """The sentence of an error."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return answer.json()["error"]


def test_a_photograph_finds_what_the_index_finds(client, index, folder):
    found = client.post("/api/search?k=6", content=photograph(folder), headers=PNG).json()["matches"]
    [expected] = index.search([folder / "photographs/plain/0.png"], k=6)
    assert {match["path"] for match in found} == {match.path for match in expected}
    assert found[0]["path"] == str(folder / "photographs/plain/0.png")
    assert found[0]["score"] == pytest.approx(1, abs=1e-5)
    assert [match["score"] for match in found] == pytest.approx([match.score for match in expected], abs=1e-5)


@pytest.mark.parametrize("label", COLOURS)
def test_labels_are_only_text(client, label, folder):
    parameters = {"label": label, "k": "9"}
    found = client.post("/api/search", params=parameters, content=photograph(folder), headers=PNG).json()["matches"]
    assert [match["label"] for match in found] == [label, label]
    assert {"label": label, "images": 2} in client.get("/api/labels").json()


def test_no_such_label_and_no_such_score(client, folder):
    for parameters in ({"label": "' OR '1' = '1"}, {"label": "plain", "min_score": "1", "k": "1"}):
        answer = client.post("/api/search", params=parameters, content=photograph(folder, QUOTES), headers=PNG)
        assert answer.json() == {"matches": []}


def test_similar_leaves_out_the_image_itself(client, folder):
    first, *_ = client.post("/api/search", content=photograph(folder), headers=PNG).json()["matches"]
    found = client.get(f"/api/similar/{first['id']}?k=9").json()["matches"]
    assert len(found) == 5
    assert first["id"] not in [match["id"] for match in found]


def test_about(client):
    about = client.get("/api/about").json()
    expected = {"images": 6, "model": "tiny.safetensors", "operating_points": POINTS, "max_bytes": upload.MAX_BYTES}
    assert about == expected


def test_pictures_are_small_jpegs(client, folder):
    first, *_ = client.post("/api/search", content=photograph(folder), headers=PNG).json()["matches"]
    for kind, size in (("thumbnail", (320, 240)), ("image", (400, 300))):
        answer = client.get(f"/{kind}/{first['id']}")
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert Image.open(io.BytesIO(answer.content)).size == size


TRAVERSALS = ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "x' OR '1'='1", "0" * 31, "G" * 32]


@pytest.mark.parametrize("place", ["thumbnail", "image", "api/similar", "static"])
@pytest.mark.parametrize("name", TRAVERSALS)
def test_no_path_leads_out(client, place, name):
    answer = client.get(f"/{place}/{name}")
    assert answer.status_code in (404, 422)
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize("place", ["thumbnail", "image", "api/similar"])
def test_an_unknown_image(client, place):
    assert "no such image" in refused(client.get(f"/{place}/{'0' * 32}"), 404)


@pytest.mark.parametrize("change", ["gone", "changed", "a link to another file"])
def test_a_file_that_is_not_what_was_indexed(change, tmp_path):
    index = make_index(tmp_path)
    client = TestClient(make_app(index, LOCAL_NAMES), base_url="http://localhost")
    first, *_ = client.post("/api/search", content=photograph(tmp_path), headers=PNG).json()["matches"]
    path = pathlib.Path(first["path"])
    content = path.read_bytes()
    path.unlink()
    if change == "changed":  # to another picture of the same size
        path.write_bytes(content[:-1] + b"\0")
    if change == "a link to another file":
        path.symlink_to(tmp_path / "tiny.safetensors")
    for kind in ("thumbnail", "image"):
        assert "gone or changed" in refused(client.get(f"/{kind}/{first['id']}"), 404)


def test_a_copy_of_a_gone_file_is_shown(tmp_path):
    index = make_index(tmp_path)
    (tmp_path / "photographs/copies").mkdir()
    shutil.copy(tmp_path / "photographs/plain/0.png", tmp_path / "photographs/copies/0.png")
    index.add(tmp_path / "photographs")
    client = TestClient(make_app(index, LOCAL_NAMES), base_url="http://localhost")
    first, *_ = client.post("/api/search", content=photograph(tmp_path), headers=PNG).json()["matches"]
    (tmp_path / "photographs/plain/0.png").unlink()
    assert client.get(f"/image/{first['id']}").status_code == 200


def test_kept_thumbnails_are_bounded(index, client, folder, monkeypatch):
    found = client.post("/api/search?k=6", content=photograph(folder), headers=PNG).json()["matches"]
    made = pictures.Pictures(index.engine)
    size = len(made.thumbnail(found[0]["id"]) or b"")
    monkeypatch.setattr(pictures, "CACHE_BYTES", 3 * size)
    for match in found:
        made.thumbnail(match["id"])
    assert 0 < sum(map(len, made._kept.values())) == made._bytes <= 3 * size


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
NO_IMAGES = {
    "text": (b"no image", "image/jpeg", 415, "no photograph that can be read"),
    "SVG": (SVG, "image/svg+xml", 415, "no photograph that can be read"),
    "HTML as an image": (b"<html><script>alert(1)</script></html>", "image/png", 415, "no photograph"),
    "HTML": (b"<html></html>", "text/html", 415, "Content-Type is text/html"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "image/x-eps", 415, "no photo"),
    "a form": (b"--x\r\n", "multipart/form-data; boundary=x", 415, "as the body"),
    "nothing": (b"", "image/png", 400, "no photograph in the request"),
    "a bomb": (claimed_png(12_000, 12_000), "image/png", 413, "million pixels"),
    "a huge bomb": (claimed_png(2**31 - 1, 2**31 - 1), "image/png", 413, "million pixels"),
    "half a file": (claimed_png(50, 50), "image/png", 415, "Send a whole"),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_photograph(client, name):
    content, kind, status, told = NO_IMAGES[name]
    answer = client.post("/api/search", content=content, headers={"Content-Type": kind})
    assert told in refused(answer, status)
    assert answer.headers["content-type"] == "application/json"


def test_levels_without_a_range(client):
    file = io.BytesIO()
    Image.new("F", (20, 20)).save(file, "TIFF")
    answer = client.post("/api/search", content=file.getvalue(), headers=PNG)
    assert "8 or 16 bits" in refused(answer, 415)


def test_too_many_bytes_are_refused_while_they_arrive(client, monkeypatch):
    monkeypatch.setattr(upload, "MAX_BYTES", 1000)
    assert "MB" in refused(client.post("/api/search", content=bytes(1001), headers=PNG), 413)

    sent = []

    async def endless():
        sent.append(400)
        return {"type": "http.request", "body": bytes(400), "more_body": True}

    request = upload.Request({"type": "http", "headers": [(b"content-type", b"image/png")]}, endless)
    with pytest.raises(HTTPException) as caught:
        asyncio.run(upload.receive(request))
    assert caught.value.status_code == 413
    assert len(sent) == 3


def test_a_photograph_that_does_not_arrive(monkeypatch):
    monkeypatch.setattr(upload, "SECONDS", 0.05)

    async def silence():
        await asyncio.sleep(60)

    request = upload.Request({"type": "http", "headers": [(b"content-type", b"image/png")]}, silence)
    with pytest.raises(HTTPException) as caught:
        asyncio.run(upload.receive(request))
    assert caught.value.status_code == 408


@pytest.mark.parametrize("wrong", ["k=0", "k=many", "k=100000", "min_score=nan", "min_score=2"])
def test_wrong_parameters(client, wrong, folder):
    told = refused(client.post(f"/api/search?{wrong}", content=photograph(folder), headers=PNG), 422)
    assert told.startswith(wrong.partition("=")[0])


def test_a_full_queue_refuses_and_others_are_answered(index, folder, monkeypatch):
    monkeypatch.setattr("proxynca_jax.page.app.PLACES", 2)
    started, go_on = threading.Event(), threading.Event()

    def slow(content: bytes) -> np.ndarray:
        started.set()
        go_on.wait(20)
        return upload.decode(content)

    monkeypatch.setattr("proxynca_jax.page.app.decode", slow)

    async def ask():
        transport = httpx.ASGITransport(make_app(index, None))
        async with httpx.AsyncClient(transport=transport, base_url="http://any.name") as client:
            post = lambda: client.post("/api/search", content=photograph(folder), headers=PNG)  # noqa: E731
            first = [asyncio.create_task(post()) for _ in range(2)]
            await asyncio.to_thread(started.wait, 20)
            third = await post()
            go_on.set()
            return await asyncio.gather(*first), third, await post()

    first, third, later = asyncio.run(ask())
    assert [answer.status_code for answer in (*first, later)] == [200, 200, 200]
    assert "Too many searches" in refused(third, 503)
    assert third.headers["retry-after"] == "1"


def test_a_place_is_given_back_after_an_error():
    async def fail_then_hold():
        queue = queues.Queue(1)
        with pytest.raises(ZeroDivisionError):
            async with queue.place(), queue.turn():
                _ = 1 / 0
        async with queue.place(), queue.turn():
            return True

    assert asyncio.run(fail_then_hold())


@pytest.mark.parametrize("name", ["localhost:8000", "127.0.0.1", "[::1]:9", "LOCALHOST"])
def test_names_of_this_machine(client, name):
    assert client.get("/api/about", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize("name", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "", "[::2]"])
@pytest.mark.parametrize("place", ["/", "/api/about", "/static/page.js"])
def test_other_names_are_refused(client, name, place):
    assert "localhost" in refused(client.get(place, headers={"Host": name}), 400)


def test_headers_of_every_answer(client):
    for place in ("/", "/static/page.js", "/nowhere", "/api/about"):
        answer = client.get(place, headers={"Origin": "https://evil.example"})
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_failure_is_a_sentence_and_keeps_its_headers(index, monkeypatch):
    monkeypatch.setattr(Index, "__len__", lambda _: 1 // 0)
    client = TestClient(make_app(index, None), raise_server_exceptions=False)
    answer = client.get("/api/about")
    assert "terminal" in refused(answer, 500)
    assert "content-security-policy" in answer.headers


def test_the_schema_and_no_page_from_elsewhere(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/api/search", "/api/similar/{id}", "/api/labels", "/api/about"} < paths.keys()
    assert "image/*" in paths["/api/search"]["post"]["requestBody"]["content"]
    for place in ("/docs", "/redoc"):
        refused(client.get(place), 404)
    for place in ("/", "/static/page.js", "/static/page.css"):
        assert "https://" not in client.get(place).text


def test_a_port_in_use_and_a_host_elsewhere():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"127.0.0.1, port {port}: Address already in use\. Choose another --port"):
            serve._listen("127.0.0.1", port)
    with pytest.raises(UserError, match=r"192.0.2.1, port 0"):
        serve._listen("192.0.2.1", 0)

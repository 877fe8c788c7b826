import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from evaluation import downloads
from evaluation.testsets import load_dataset, write_collection
from indexes.errors import InputError
from retrieval.documents import Document


class Archives(BaseHTTPRequestHandler):
    """Serves one archive, with ranges, and cuts answers off after `limit` bytes."""

    body, limit, ranges, asked = b"", None, True, []

    def do_GET(self):
        wanted = self.headers.get("Range")
        type(self).asked.append((self.path, wanted))
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        if start > len(self.body):
            self.send_error(416)
            return
        self.send_response(206 if wanted and self.ranges else 200)
        self.send_header("Content-Length", str(len(self.body) - start))
        self.end_headers()
        self.wfile.write(self.body[start:][: self.limit])

    def log_message(self, *_):
        pass


@pytest.fixture
def made(tmp_path):
    write_collection(tmp_path / "made", [Document("d1", "one" * 2000)], {"q1": "one?"}, {"test": {"q1": {"d1": 1}}})
    return tmp_path / "made"


def packed(folder, top="scifact"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != "manifest.json":
                archive.write(path, f"{top}/{path.relative_to(folder)}")
    return buffer.getvalue()


@pytest.fixture
def server(made, tmp_path, monkeypatch):
    class Own(Archives):
        body, asked = packed(made), []

    found = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    threading.Thread(target=found.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(downloads, "BASE", f"http://127.0.0.1:{found.server_port}")
    monkeypatch.setitem(downloads.MD5, "scifact", hashlib.md5(Own.body).hexdigest())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield Own
    found.shutdown()
    found.server_close()


@pytest.fixture
def home(tmp_path):
    return tmp_path / "cache" / "retrokit" / "beir"


def test_an_archive_is_downloaded_once(server, made, home):
    testset = load_dataset("beir:scifact")
    assert testset.name == "scifact"
    assert testset.fingerprint == load_dataset(made).fingerprint
    assert load_dataset("beir:scifact").fingerprint == testset.fingerprint
    assert server.asked == [("/scifact.zip", None)]
    assert sorted(path.name for path in home.iterdir()) == [".scifact.lock", "scifact"]


def test_a_download_that_was_cut_off_goes_on(server, made, home):
    server.limit = 100
    for have in (100, 200):
        with pytest.raises(
            InputError, match=rf"cannot be had \(cut off after {have} of .* bytes\); {have} bytes are here"
        ):
            load_dataset("beir:scifact")
        assert not (home / "scifact").exists()
    server.limit = None
    assert load_dataset("beir:scifact").fingerprint == load_dataset(made).fingerprint
    assert server.asked == [("/scifact.zip", wanted) for wanted in (None, "bytes=100-", "bytes=200-")]


def test_a_server_without_ranges_gives_all_of_it_again(server, made):
    server.limit, server.ranges = 100, False
    for _ in range(2):
        with pytest.raises(InputError, match="cut off after 100 of"):
            load_dataset("beir:scifact")
    server.limit = None
    assert load_dataset("beir:scifact").fingerprint == load_dataset(made).fingerprint


def test_a_wrong_md5_is_refused_and_nothing_of_it_stays(server, home, monkeypatch):
    monkeypatch.setitem(downloads.MD5, "scifact", "0" * 32)
    with pytest.raises(InputError, match="its MD5 is .*, expected 00000000"):
        load_dataset("beir:scifact")
    assert [path.name for path in home.iterdir()] == [".scifact.lock"]


def test_remains_of_another_file_are_replaced(server, made, home):
    home.mkdir(parents=True)
    (home / "scifact.zip.part").write_bytes(b"x" * (len(server.body) + 1))
    assert load_dataset("beir:scifact").fingerprint == load_dataset(made).fingerprint


def test_a_whole_download_is_unpacked_without_another(server, made, home):
    home.mkdir(parents=True)
    (home / "scifact.zip.part").write_bytes(server.body)
    assert load_dataset("beir:scifact").fingerprint == load_dataset(made).fingerprint
    assert server.asked == []


@pytest.mark.parametrize(("top", "message"), [("other", "holds other; expected a folder scifact"), (None, "not a zip")])
def test_a_strange_archive_leaves_no_folder(server, made, home, monkeypatch, top, message):
    server.body = packed(made, top) if top else b"no zip file"
    monkeypatch.setitem(downloads.MD5, "scifact", hashlib.md5(server.body).hexdigest())
    with pytest.raises(InputError, match=message):
        load_dataset("beir:scifact")
    assert not (home / "scifact").exists()


def test_subforums_are_collections_of_their_own(server, made, tmp_path, monkeypatch):
    (tmp_path / "all").mkdir()
    made.rename(tmp_path / "all" / "gis")
    server.body = packed(tmp_path / "all", "cqadupstack")
    monkeypatch.setitem(downloads.MD5, "cqadupstack", hashlib.md5(server.body).hexdigest())
    assert load_dataset("beir:cqadupstack/gis").name == "cqadupstack-gis"
    with pytest.raises(InputError, match=r"CQADupstack is 12 test collections \(android, .*; name one"):
        load_dataset("beir:cqadupstack")


def test_what_beir_does_not_have_is_refused_without_asking(server):
    with pytest.raises(InputError, match="beir:robust04: no such archive; expected one of arguana"):
        load_dataset("beir:robust04")
    with pytest.raises(InputError, match="scifact is one test collection; expected beir:scifact"):
        load_dataset("beir:scifact/test")
    assert server.asked == []


def test_a_server_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr(downloads, "BASE", "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match="cannot be had .*; 0 bytes are here: try again, or give a folder you have"):
        load_dataset("beir:nfcorpus")


def test_md5s_are_those_of_ir_datasets():
    irds = pytest.importorskip("ir_datasets")
    import json
    from pathlib import Path

    theirs = json.loads((Path(irds.__file__).parent / "etc" / "downloads.json").read_text())["beir"]
    for name, md5 in downloads.MD5.items():
        key = "webis-touche2020/v2" if name == "webis-touche2020" else name
        assert (theirs[key]["expected_md5"], theirs[key]["url"]) == (md5, downloads.url_of(name))

"""What all tests share: no network, real data where it is, a tiny encoder that is made here."""

import os
import socket
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("COLUMNS", None)  # which xdist sets, and rich takes for the width of all tables
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # as many workers as cores: more threads would only be in each other's way

import pytest
from fixtures import make_model, random_texts

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items):
    """The longest test comes first, so that no worker is left alone with it at the end."""
    items.sort(key=lambda item: not item.name.startswith("test_examples_run_in_order"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"a test reached for the network: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real test collections (`beir/`, `sts/`); tests that need it skip where it is absent."""
    folder = Path(os.environ.get("RETROKIT_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "beir").is_dir():
        pytest.skip(f"no test collections at {folder}; set RETROKIT_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory) -> Path:
    """Where tests of a real encoder on real collections keep vectors, so that each collection is encoded once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def encoder(model_folder):
    from retrieval.encoder import Encoder

    return Encoder.load(str(model_folder))


@pytest.fixture
def documents():
    from retrieval.documents import Document

    return [Document(f"d{number}", text) for number, text in enumerate(random_texts(50))]


@pytest.fixture
def corpus_file(tmp_path, documents) -> Path:
    import json

    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"_id": d.id, "text": d.text}) + "\n" for d in documents))
    return path

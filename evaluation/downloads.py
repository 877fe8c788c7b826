"""BEIR's archives: downloaded once, checked, unpacked into a cache folder."""

import hashlib
import http.client
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

from evaluation.profiles import CQADUPSTACK
from evaluation.sources import Source, open_folder
from indexes.errors import InputError
from indexes.manifest import held, new_folder, seal
from retrieval.cache import cache_home
from retrieval.console import OnProgress, progress

BASE = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"

MD5 = {
    "arguana": "8ad3e3c2a5867cdced806d6503f29b99",
    "climate-fever": "8b66f0a9126c521bae2bde127b4dc99d",
    "cqadupstack": "4e41456d7df8ee7760a7f866133bda78",
    "dbpedia-entity": "c2a39eb420a3164af735795df012ac2c",
    "fever": "5a818580227bfb4b35bb6fa46d9b6c03",
    "fiqa": "17918ed23cd04fb15047f73e6c3bd9d9",
    "hotpotqa": "f412724f78b0d91183a0e86805e16114",
    "msmarco": "444067daf65d982533ea17ebd59501e4",
    "nfcorpus": "a89dba18a62ef92f7d323ec890a0d38d",
    "nq": "d4d3d2e48787a744b6f6e691ff534307",
    "quora": "18fb154900ba42a600f84b839c173167",
    "scidocs": "38121350fc3a4d2f48850f6aff52e4a9",
    "scifact": "5f7d1de60b170fc8027bb7898e2efca1",
    "trec-covid": "ce62140cb23feb9becf6270d0d1fe6d1",
    "webis-touche2020": "46f650ba5a527fc69e0a6521c5a23563",
}
"""What BEIR's README and ir_datasets say of the archives."""

_CHUNK = 1 << 20
_PARTIAL, _PAST_THE_END = 206, 416


def url_of(name: str) -> str:
    """Where an archive of BEIR is."""
    return f"{BASE}/{name}.zip"


def open_beir(rest: str, split: str | None) -> Source:
    """Open `beir:NAME`, downloading it into retrokit's cache where it is not there yet.

    A cut-off download goes on where it was; the folder appears only when the archive had the right MD5 and is wholly
    unpacked.

    Raises:
        InputError: BEIR has no such archive for download, it cannot be had, or its MD5 is another.
    """
    name, _, inside = rest.partition("/")
    if name not in MD5:
        raise InputError(f"beir:{rest}: no such archive; expected one of {', '.join(MD5)}")
    if name == "cqadupstack" and inside not in CQADUPSTACK:
        raise InputError(
            f"beir:{rest}: CQADupstack is {len(CQADUPSTACK)} test collections ({', '.join(CQADUPSTACK)}); name one, as "
            "beir:cqadupstack/android"
        )
    if inside and name != "cqadupstack":
        raise InputError(f"beir:{rest}: {name} is one test collection; expected beir:{name}")
    folder = fetch_archive(name)
    return open_folder(folder / inside if inside else folder, split)


def fetch_archive(name: str, cache: Path | None = None) -> Path:
    """The unpacked archive of BEIR, downloaded if need be; several processes may ask for it at once.

    Raises:
        InputError: It cannot be had, or its MD5 is another.
    """
    home = (cache or cache_home()) / "beir"
    home.mkdir(parents=True, exist_ok=True)
    folder, archive = home / name, home / f"{name}.zip.part"
    with held(home / f".{name}.lock", wait=True):
        if folder.is_dir():
            return folder
        with progress(f"downloading {name}.zip", "bytes") as on_progress:
            download(url_of(name), archive, MD5[name], on_progress)
        with new_folder(folder) as new:
            _unpack(archive, name, new)
            seal(new, "test collection", {"url": url_of(name), "md5": MD5[name]})
        archive.unlink()
    return folder


def download(url: str, path: Path, md5: str, on_progress: OnProgress) -> None:
    """Download a file, going on where an earlier try was cut off.

    Raises:
        InputError: It cannot be had or was cut off (what is there stays, for the next try), or its MD5 is another (it
            is removed).
    """
    if not path.exists() or _md5(path) != md5:
        try:
            _receive(url, path, on_progress)
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            have = path.stat().st_size if path.exists() else 0
            raise InputError(
                f"{url}: cannot be had ({error}); {have:,} bytes are here: try again, or give a folder you have instead"
            ) from None
    found = _md5(path)
    if found != md5:
        path.unlink()
        raise InputError(
            f"{url}: its MD5 is {found}, expected {md5}; it was removed: try again, or ask who keeps the file"
        )


def _receive(url: str, path: Path, on_progress: OnProgress) -> None:
    have = path.stat().st_size if path.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310  ours
    try:
        response = urllib.request.urlopen(request, timeout=60)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code != _PAST_THE_END:
            raise
        path.unlink()  # longer than the file is now: start anew
        return _receive(url, path, on_progress)
    with response:
        if getattr(response, "status", None) != _PARTIAL:
            have = 0  # the server gives the whole file
        total = _length(response, have)
        with path.open("ab" if have else "wb") as file:
            while block := response.read(_CHUNK):
                file.write(block)
                have += len(block)
                on_progress(have, total)
    if total is not None and have < total:
        raise OSError(f"cut off after {have:,} of {total:,} bytes")


def _length(response: Any, have: int) -> int | None:
    length = response.headers.get("Content-Length")
    return have + int(length) if length else None


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unpack(archive: Path, name: str, folder: Path) -> None:
    """Put what is in the archive's one folder into ours."""
    try:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder)
    except zipfile.BadZipFile as error:
        raise InputError(f"{archive}: not a zip file ({error}); remove it and try again") from None
    if not (folder / name).is_dir():
        inside = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise InputError(f"{archive}: holds {inside}; expected a folder {name}")
    (folder / name).rename(folder / ".inside")
    for path in sorted((folder / ".inside").iterdir()):
        path.rename(folder / path.name)
    (folder / ".inside").rmdir()

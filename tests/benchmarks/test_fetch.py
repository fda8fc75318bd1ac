"""Fetching benchmarks, from a server of this machine: complete, going on after a break, and refused when it is something else."""

import hashlib
import io
import re
import tarfile
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from conftest import DATA

from nanoct.benchmarks import fetch as module
from nanoct.benchmarks.fetch import SOURCES, Archive, Hub, check, download, fetch

KEEP = r"[^/]+/(bbh/[^/]+\.json)"
MEMBERS = {"main/bbh/a.json": b"{}" * 400, "main/bbh/b.json": b"[]", "main/README.md": b"read me", "main/bbh/../../evil.json": b"x"}


def zipped(members=MEMBERS):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for name, content in members.items():
            packed.writestr(name, content)
    return file.getvalue()


def tarred(members=MEMBERS):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as packed:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return file.getvalue()


class Server(BaseHTTPRequestHandler):
    def __init__(self, content, breaks, asked, *args):
        self.content, self.breaks, self.asked = content, breaks, asked
        super().__init__(*args)

    def do_GET(self):
        start = int(re.search(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.asked.append(start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", len(self.content) - start)
        self.end_headers()
        self.wfile.write(self.content[start : self.breaks.pop(0) if self.breaks else None])  # a break: less than was promised

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    servers = []

    def start(content, *breaks):
        asked = []
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, content, list(breaks), asked)))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/main.zip", asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_is_fetched_and_only_what_is_asked_for_unpacked(serve, pack, tmp_path, monkeypatch, capsys):
    url, asked = serve(pack())
    monkeypatch.setitem(SOURCES, "bbh", Archive(url, KEEP, 2))
    fetch("bbh", tmp_path)
    assert sorted(str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file()) == ["bbh.zip", "bbh/bbh/a.json", "bbh/bbh/b.json"]
    assert (tmp_path / "bbh/bbh/a.json").read_bytes() == MEMBERS["main/bbh/a.json"]
    assert "2 files, 0 of them with a known SHA-256" in capsys.readouterr().out
    fetch("bbh", tmp_path)
    assert asked == [0]  # what is there is not fetched again


def test_a_broken_download_goes_on_where_it_stopped(serve, tmp_path):
    content = zipped()
    url, asked = serve(content, 100, 250)
    for _ in range(2):
        with pytest.raises(OSError, match="the same command goes on"):
            download(url, tmp_path / "x.zip")
        assert not (tmp_path / "x.zip").exists()
    download(url, tmp_path / "x.zip")
    assert (tmp_path / "x.zip").read_bytes() == content and asked == [0, 100, 250]


def test_without_a_network_it_says_what_to_fetch_by_hand(tmp_path):
    with pytest.raises(OSError, match=r"http://127.0.0.1:9/x.zip could not be fetched.*Without a network: fetch it elsewhere and put it at .*x.zip"):
        download("http://127.0.0.1:9/x.zip", tmp_path / "x.zip")


def test_the_hub_without_a_network(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no route\nand more")

    monkeypatch.setattr(module, "snapshot_download", fail)
    with pytest.raises(OSError, match=r"allenai/metaicl-data could not be fetched \(no route\).*Without a network: put data/<task>"):
        fetch("nlp_lr", tmp_path)


def test_the_hub_is_asked_for_the_files_of_the_26_tasks(tmp_path, monkeypatch):
    seen = {}

    def snapshot(name, local_dir, **options):
        seen.update(options, name=name)
        (local_dir / "data" / "sick").mkdir(parents=True)
        (local_dir / "data" / "sick" / "sick_16_13_train.jsonl").write_text("{}")

    monkeypatch.setattr(module, "snapshot_download", snapshot)
    monkeypatch.setattr(module, "check", lambda folder: 0)
    fetch("nlp_lr", tmp_path)
    assert (tmp_path / "nlp_lr" / "sick" / "sick_16_13_train.jsonl").read_text() == "{}"
    assert len(seen["allow_patterns"]) == 52 and isinstance(SOURCES["nlp_lr"], Hub) and seen["revision"]


def test_an_archive_that_is_broken_or_lacks_files(serve, tmp_path, monkeypatch):
    for content, said in ((b"no archive", "is broken"), (zipped({"main/bbh/a.json": b"{}"}), "holds 1 of the 2 files")):
        (tmp_path / "bbh.zip").unlink(missing_ok=True)
        monkeypatch.setitem(SOURCES, "bbh", Archive(serve(content)[0], KEEP, 2))
        with pytest.raises(ValueError, match=said):
            fetch("bbh", tmp_path)


def test_a_file_with_another_sum_is_refused(tmp_path, monkeypatch):
    sums, folder = tmp_path / "sums", tmp_path / "bbh"
    sums.write_text("".join(f"{hashlib.sha256(text).hexdigest()}  bbh/{name}\n" for name, text in (("a", b"1"), ("b", b"2"), ("c", b"3"))))
    monkeypatch.setattr(module, "SUMS", sums)
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    (folder / "b").write_bytes(b"2")
    (folder / "other").write_bytes(b"no sum")
    assert check(folder) == 2
    (folder / "b").write_bytes(b"3")
    with pytest.raises(ValueError, match="b is not the public file"):
        check(folder)




@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the public files in {DATA}")
@pytest.mark.parametrize("name, n", [("bbh", 26), ("mmlu", 20), ("arc", 400), ("nlp_lr", 78)])
def test_the_sums_are_of_the_public_files(name, n):
    assert check(DATA / name) == n

"""Fetching benchmarks, from a server of this machine: complete, going on after a break, and refused if it is else."""

import hashlib
import io
import re
import tarfile
import zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from helpers import DATA

from nanoct.benchmarks import fetch as module
from nanoct.benchmarks.fetch import SOURCES, Archive, Hub, download, fetch, is_known

KEEP = r"[^/]+/(bbh/[^/]+\.json)"
MEMBERS = {"main/bbh/a.json": b"{}" * 400, "main/bbh/b.json": b"[]", "main/README.md": b"read me",
           "main/bbh/../../evil.json": b"x"}


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
        end = self.breaks.pop(0) if self.breaks else None  # less than was promised
        self.wfile.write(self.content[start:end])

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
    files = sorted(str(f.relative_to(tmp_path)) for f in tmp_path.rglob("*") if f.is_file())
    assert files == ["bbh.zip", "bbh/bbh/a.json", "bbh/bbh/b.json"]
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
    said = r"http://127.0.0.1:9/x.zip could not be fetched.*Without a network: fetch it elsewhere and put it at .*x.zip"
    with pytest.raises(OSError, match=said):
        download("http://127.0.0.1:9/x.zip", tmp_path / "x.zip")


def test_the_hub_without_a_network(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("no route\nand more")

    monkeypatch.setattr(module, "snapshot_download", fail)
    said = r"allenai/metaicl-data could not be fetched \(.*no route.*\).*Without a network: put data/<task>"
    with pytest.raises(OSError, match=said):
        fetch("nlp_lr", tmp_path)


def test_the_hub_is_asked_for_the_files_of_the_26_tasks(tmp_path, monkeypatch):
    seen = {}

    def snapshot(name, local_dir, **options):
        seen.update(options, name=name)
        (local_dir / "data" / "sick").mkdir(parents=True)
        (local_dir / "data" / "sick" / "sick_16_13_train.jsonl").write_text("{}")

    monkeypatch.setattr(module, "snapshot_download", snapshot)
    monkeypatch.setattr(module, "is_known", lambda path, content: False)
    fetch("nlp_lr", tmp_path)
    assert (tmp_path / "nlp_lr" / "sick" / "sick_16_13_train.jsonl").read_text() == "{}"
    assert len(seen["allow_patterns"]) == 52 and isinstance(SOURCES["nlp_lr"], Hub) and seen["revision"]


def flipped(content, at=60):
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


def deflated():
    """A zip that compresses, as zlib has errors of its own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("main/bbh/a.json", bytes(range(256)) * 40)
        packed.writestr("main/bbh/b.json", b"[]")
    return file.getvalue()


def encrypted(content):
    """The same zip with the flag of encryption set, in every header of a member."""
    content = bytearray(content)
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        where = content.find(mark)
        while where >= 0:
            content[where + at] |= 1
            where = content.find(mark, where + 1)
    return bytes(content)


def with_member(kind, name="main/bbh/a.json"):
    """A tar with a member of another kind in place of a file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as packed:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        packed.addfile(info)
    return file.getvalue()


BROKEN = {
    "no archive": (b"no archive", "is broken"),
    "nothing": (b"", "is broken"),
    "lacks files": (zipped({"main/bbh/a.json": b"{}"}), "holds 1 of the 2 files"),
    "a flipped byte": (flipped(zipped()), "Bad CRC"),
    "a flipped byte of what is compressed": (flipped(deflated()), "is broken"),
    "cut off": (zipped()[:-30], "is broken"),
    "a tar cut off": (tarred()[:700], "is broken"),
    "encrypted": (encrypted(zipped()), "encrypted"),
    "a link": (with_member(tarfile.SYMTYPE), "is broken"),
    "a hard link": (with_member(tarfile.LNKTYPE), "is broken"),
    "a folder": (with_member(tarfile.DIRTYPE), "is broken"),
    "a device": (with_member(tarfile.CHRTYPE), "is broken"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_archive_is_said_and_set_aside(serve, tmp_path, monkeypatch, name):
    """So that the same command fetches it anew, as it says."""
    content, said = BROKEN[name]
    monkeypatch.setitem(SOURCES, "bbh", Archive(serve(content)[0], KEEP, 2))
    with pytest.raises(ValueError, match=said) as error:
        fetch("bbh", tmp_path)
    assert "\n" not in str(error.value) and str(error.value).endswith("the same command fetches it anew.")
    assert (tmp_path / "bbh.zip.broken").read_bytes() == content and not (tmp_path / "bbh.zip").exists()
    monkeypatch.setitem(SOURCES, "bbh", Archive(serve(zipped())[0], KEEP, 2))
    fetch("bbh", tmp_path)
    assert (tmp_path / "bbh/bbh/a.json").read_bytes() == MEMBERS["main/bbh/a.json"]


def test_a_folder_where_a_file_should_be(serve, tmp_path, monkeypatch):
    (tmp_path / "bbh/bbh/a.json").mkdir(parents=True)
    monkeypatch.setitem(SOURCES, "bbh", Archive(serve(zipped())[0], KEEP, 2))
    with pytest.raises(OSError, match="cannot write .*a.json"):
        fetch("bbh", tmp_path)
    assert (tmp_path / "bbh.zip").exists()


class Headers(BaseHTTPRequestHandler):
    """Answers with the status, headers and bytes it is given."""

    def __init__(self, status, headers, content, *args):
        self.said = status, headers, content
        super().__init__(*args)

    def do_GET(self):
        status, headers, content = self.said
        self.send_response(status)
        for header in headers.items():
            self.send_header(*header)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.mark.parametrize("status, headers, content, got", [
    (206, {}, b"56789", b"0123456789"),  # without a Content-Length
    (206, {"Content-Range": "bytes 5-9/*", "Content-Length": "5"}, b"56789", b"0123456789"),
    (206, {"Content-Length": "9"}, b"56789", None),
    (200, {}, b"abcdefghijk", b"abcdefghijk"),  # all of it
    (200, {"Content-Length": "many"}, b"abc", b"abc"),
    (416, {}, b"", None),
    (404, {}, b"", None),
])
def test_whatever_a_server_answers(serve, tmp_path, status, headers, content, got):
    file, part = tmp_path / "x.zip", tmp_path / "x.zip.part"
    part.write_bytes(b"01234")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Headers, status, headers, content))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        if got is None:
            with pytest.raises(OSError, match="; the same command goes on ") as error:
                download(f"http://127.0.0.1:{server.server_port}/x.zip", file)
            assert "\n" not in str(error.value) and not file.exists()
        else:
            download(f"http://127.0.0.1:{server.server_port}/x.zip", file)
            assert file.read_bytes() == got
    finally:
        server.shutdown()
        server.server_close()


def test_a_file_whose_sum_is_another_is_fetched_anew(serve, tmp_path, monkeypatch):
    sums = tmp_path / "sums"
    sums.write_text(f"{hashlib.sha256(b'[1]').hexdigest()}  bbh/bbh/b.json\n")
    monkeypatch.setattr(module, "SUMS", sums)
    monkeypatch.setitem(SOURCES, "bbh", Archive(serve(zipped())[0], KEEP, 2))
    with pytest.raises(ValueError, match="b.json is not the public file .*bbh.zip.broken, and the same command"):
        fetch("bbh", tmp_path)
    assert not list((tmp_path / "bbh").rglob("*.json"))  # or a reader would take them for public ones
    monkeypatch.setitem(SOURCES, "bbh", Archive(serve(zipped(MEMBERS | {"main/bbh/b.json": b"[1]"}))[0], KEEP, 2))
    fetch("bbh", tmp_path)


def test_a_dataset_whose_sum_is_another_is_fetched_anew(tmp_path, monkeypatch):
    contents = [b"x", b"y", b"[1]"]

    def snapshot(name, local_dir, **options):
        file = local_dir / "data" / "sick" / "a.jsonl"
        if not file.exists():
            file.parent.mkdir(parents=True)
            file.write_bytes(contents.pop(0))

    sums = tmp_path / "sums"
    sums.write_text(f"{hashlib.sha256(b'[1]').hexdigest()}  nlp_lr/sick/a.jsonl\n")
    monkeypatch.setattr(module, "SUMS", sums)
    monkeypatch.setattr(module, "snapshot_download", snapshot)
    for _ in range(2):
        with pytest.raises(ValueError, match="a.jsonl is not the public file .*data.broken"):
            fetch("nlp_lr", tmp_path)
    fetch("nlp_lr", tmp_path)
    assert (tmp_path / "nlp_lr" / "sick" / "a.jsonl").read_bytes() == b"[1]"
    monkeypatch.setattr(module, "snapshot_download", lambda name, local_dir, **_: None)
    with pytest.raises(ValueError, match="holds 0 of the 1 files"):
        fetch("nlp_lr", tmp_path / "other")


def test_a_file_with_another_sum_is_refused(tmp_path, monkeypatch):
    (tmp_path / "sums").write_text(f"{hashlib.sha256(b'1').hexdigest()}  bbh/a\n")
    monkeypatch.setattr(module, "SUMS", tmp_path / "sums")
    assert is_known("bbh/a", b"1") and not is_known("bbh/b", b"1")
    with pytest.raises(ValueError, match="bbh/a is not the public file"):
        is_known("bbh/a", b"2")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the public files in {DATA}")
@pytest.mark.parametrize("name, n", [("bbh", 26), ("mmlu", 20), ("arc", 400), ("nlp_lr", 78)])
def test_the_sums_are_of_the_public_files(name, n):
    files = [file for file in (DATA / name).rglob("*") if file.is_file()]
    assert sum(is_known(file.relative_to(DATA).as_posix(), file.read_bytes()) for file in files) == n

"""The reader of JSON, that of JSON lines and the writer: every fault is one sentence with the name of the file."""

import json
import os
import struct
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from nanoct.io import files
from nanoct.io.files import append_lines, lock, read_bytes, read_json, read_json_lines, reading, replace_file, replacing

DEEP = 100_000
BROKEN = {
    "nothing": b"",
    "half": b'{"a": [1, 2',
    "nested lists": b"[" * DEEP + b"]" * DEEP,
    "nested objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "opened only": b"[" * DEEP,
    "Latin-1": '{"a": "é"}'.encode("latin-1"),
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "half a surrogate, as bytes": b'"\xed\xa0\x80"',
    "binary": bytes(range(256)),
    "a very long number": b"1" * 10_000,
    "two values": b"1 2",
    "a key twice": b'{"a": 1, "b": {"c": 1, "c": 2}}',
    "single quotes": b"{'a': 1}",
}


def sentence(error, call, *arguments, **options):
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 500, message
    return message


@pytest.mark.parametrize("name", BROKEN)
def test_broken_json_is_a_sentence_in_both_readers(tmp_path, name):
    (tmp_path / "x.json").write_bytes(BROKEN[name])
    assert str(tmp_path / "x.json") in sentence(ValueError, read_json, tmp_path / "x.json")
    assert "the header" in sentence(ValueError, read_json, BROKEN[name], "the header")
    (tmp_path / "x.jsonl").write_bytes(b'{"a": 1}\n' + (BROKEN[name] or b" ") + b'\n{"b": 2}\n')
    assert "x.jsonl, line 2" in sentence(ValueError, read_json_lines, tmp_path / "x.jsonl")


@pytest.mark.parametrize("error, said", [
    (KeyError("weight_map"), "it has no 'weight_map'"), (TypeError("unhashable type: 'list'"), "unhashable type"),
    (IndexError("list index out of range"), "out of range"), (AttributeError("'int' has no get"), "no get"),
    (RecursionError("maximum"), "nested too deep"), (OverflowError("too\nlarge."), "OverflowError: too large)"),
    (SafetensorError("header too large"), "(header too large)"), (struct.error("unpack"), "unpack"),
    (UnicodeDecodeError("utf-8", b"x", 0, 1, "no"), "decode"), (ValueError(), "ValueError"),
    (FileNotFoundError(2, "No such file"), "there is no file x.bin"), (PermissionError(13, "denied"), "(denied)")])
def test_whatever_goes_wrong_with_a_file_is_a_sentence(error, said):
    kind = OSError if isinstance(error, OSError) else files.BadFile
    with pytest.raises(kind) as caught, reading("x.bin", "a model", "fetch it again"):
        raise error
    message = str(caught.value)
    assert "x.bin" in message and said in message and message.endswith(".") and "\n" not in message, message


@pytest.mark.parametrize("error", [ValueError("x.bin has two heads."), OSError("it is full."), MemoryError("no"),
                                   RuntimeError("out of memory"), KeyboardInterrupt(), AssertionError("a bug")])
def test_what_is_a_sentence_or_no_fault_of_the_file_goes_through(error):
    with pytest.raises(type(error)) as caught, reading("x.bin", "a model", "fetch it again"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("content, kind, said", [
    (b"[1]", dict, "holds '[1]', expected a JSON object"), (b'{"a": 1}', list, "expected a JSON list"),
    (b"null", dict, "'null'"), (b"3", dict, "'3'")])
def test_json_of_another_kind(content, kind, said):
    assert said in sentence(ValueError, read_json, content, "x", kind)


def test_what_is_right_is_read(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + '{"a": "é\u2028\U0001f642", "b": [NaN, 1e999]}\r\n'.encode())
    value = read_json(tmp_path / "x.json", kind=dict)
    assert value["a"] == "é\u2028\U0001f642" and value["b"][1] == float("inf")
    assert read_json(str(tmp_path / "x.json")).keys() == {"a", "b"} and read_json(b'"\\ud800"', "x") == "\ud800"


def test_lines_end_at_a_line_feed_alone(tmp_path):
    """str.splitlines() and bytes.splitlines() end them elsewhere too."""
    rows = [dict(text=f"a{separator}b") for separator in "\u2028\u2029\u0085"]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert len(text.splitlines()) == 6
    for end in ("", "\n", "\r\n", "\n\n \n\r\n"):
        (tmp_path / "x").write_bytes(b"\xef\xbb\xbf" + (text + end).encode())
        read = read_json_lines(tmp_path / "x")
        assert [value for _, value in read] == rows and read[-1][0] == f"{tmp_path / 'x'}, line {len(rows)}"


def test_lines_from_windows_and_empty_files(tmp_path):
    (tmp_path / "x").write_bytes(b'{"a": 1}\r\n{"a": 2}\r\n')
    assert [value["a"] for _, value in read_json_lines(tmp_path / "x")] == [1, 2]
    for content in (b"", b"\n", b"\xef\xbb\xbf", b" \r\n\n"):
        (tmp_path / "x").write_bytes(content)
        assert read_json_lines(tmp_path / "x") == []
    (tmp_path / "x").write_bytes(b'{"a": 1}\n\n{"a": 2}\n')
    assert "line 2 is empty: delete it" in sentence(ValueError, read_json_lines, tmp_path / "x")


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    assert "there is no file" in sentence(FileNotFoundError, read_bytes, tmp_path / "nowhere")
    assert "Is a directory" in sentence(OSError, read_json, tmp_path)
    assert "name too long" in sentence(OSError, read_json_lines, tmp_path / ("x" * 300))
    monkeypatch.setattr(files, "LARGEST", 1000)
    assert "more than 1,000 bytes" in sentence(ValueError, read_bytes, "/dev/zero")  # which has no end


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "new" / "x"
    assert replace_file(file, b"old") == file and file.read_bytes() == b"old"
    for fault in (KeyboardInterrupt(), OSError(28, "No space left on device"), SafetensorError("I/O error: No space")):
        with pytest.raises((KeyboardInterrupt, OSError)) as caught, replacing(file) as new:
            new.write_bytes(b"ha")
            raise fault
        assert file.read_bytes() == b"old" and [f.name for f in file.parent.iterdir()] == ["x"]
        assert isinstance(fault, KeyboardInterrupt) or f"cannot write {file} (" in str(caught.value)
    assert f"cannot write {file / 'below'}" in sentence(OSError, replace_file, file / "below", b"")


def test_a_folder_is_locked_until_its_process_ends(tmp_path):
    with lock(tmp_path):
        assert str(tmp_path) in sentence(ValueError, lock(tmp_path).__enter__)
    with lock(tmp_path), pytest.raises(BlockingIOError), lock(tmp_path / os.curdir / ".."):
        raise BlockingIOError  # an error of the block is not one of the lock
    code = "from nanoct.io.files import lock\nimport sys, time\n"
    code += "with lock(sys.argv[1]): print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        sentence(ValueError, lock(tmp_path).__enter__)
        other.kill()
        other.wait()
    with lock(tmp_path):
        pass


def test_what_is_published_is_written_though_nobody_reads_it(tmp_path, monkeypatch):
    def gone(*_):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", gone)
    with pytest.raises(BrokenPipeError):
        files.publish("± 1", tmp_path / "new" / "table.md")
    assert (tmp_path / "new" / "table.md").read_text(encoding="utf-8") == "± 1"


# --- what may be written, and what a kill leaves ---


def test_a_link_a_device_and_a_folder_are_not_replaced(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "nowhere").symlink_to("gone")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "nowhere", "pipe", ".", "/dev/null", "/dev/stdout"):
        for write in (files.check_out, lambda path: replace_file(path, b"x"), lambda path: append_lines(path, [1])):
            said = sentence(OSError, write, tmp_path / name)
            assert said.count("cannot write") == 1 and "a folder, a link or a device" in said
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_text() == "mine"
    assert not os.path.exists(tmp_path / "gone") and os.path.lexists("/dev/stdout")


def test_lines_are_appended_to_lines_alone(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    sentence(ValueError, append_lines, tmp_path / "README.md", [])
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    (tmp_path / "new").mkdir()
    for before in (b"", b'{"a": 0}', b'{"a": 0}\n'):
        file = tmp_path / "new" / "x.jsonl"
        file.write_bytes(before)
        append_lines(file, [dict(a=1), dict(a=2)])
        assert [value["a"] for _, value in read_json_lines(file)] == [0, 1, 2][not before :]


KILLED = """
import os, sys
from nanoct.io.files import replacing, temporary_folder
with temporary_folder(sys.argv[1]) as new, replacing(sys.argv[1] + "/[x]") as file:
    (new / "part").touch(), file.touch()
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_leaves_goes_at_the_next_start_and_a_living_ones_stays(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    left = {file.name.rstrip("0123456789") for file in tmp_path.iterdir()}
    assert left == {".new.", ".[x]."}
    for name in (f".[x].{os.getppid()}", ".[x].notes", ".x.1"):
        (tmp_path / name).touch()
    (tmp_path / f".new.{os.getpid()}" / "part").mkdir(parents=True)  # of this number, as in a container
    files.check_out(tmp_path / "[x]")
    with files.temporary_folder(tmp_path) as new:
        assert not list(new.iterdir())
    assert {file.name for file in tmp_path.iterdir()} == {f".[x].{os.getppid()}", ".[x].notes", ".x.1"}


def test_a_name_that_is_no_utf_8_loses_no_table(tmp_path, capsys):
    files.publish("task \udcff", tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text() == "task \\udcff"


def test_a_file_is_locked_too(tmp_path):
    with lock(tmp_path / "ctx"):
        assert "another process is at work in" in sentence(ValueError, lock(tmp_path / "ctx").__enter__)
        with lock(tmp_path / "other"):
            pass
    assert not list(tmp_path.iterdir())

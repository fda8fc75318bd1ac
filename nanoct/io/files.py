"""Read and write files: an error says in a sentence what is wrong, and no file is left half written."""

import csv
import glob
import json
import os
import shutil
import struct
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

LARGEST = 2**30  # bytes of a file that is read at once
KINDS = {dict: "object", list: "list"}
BOM = b"\xef\xbb\xbf"  # the byte order mark that some editors put first
# what readers raise on a file of another kind, or a damaged one
BROKEN = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, EOFError, struct.error,
          SafetensorError, csv.Error)


class BadFile(ValueError):
    """A file is not what it should be; the sentence says which file, and why."""


@contextmanager
def reading(file, kind, remedy="fetch it again"):
    """with reading(file, "a list of words"): whatever a file makes go wrong inside becomes one sentence.

    Readers take a file for what it should be; this is the one place that says that it is something else. It raises
    BadFile, or OSError for one that cannot be read, with the name of the file, the `kind` that was expected, the
    reason, and the `remedy`. A ValueError that begins with the name of the file is such a sentence already.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None and str(error).endswith("."):  # a sentence already
            raise
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"there is no file {file}: give one that is there.") from None
        why = error.strerror or reason(error)
        raise OSError(f"cannot read {file} ({why}): give a file that can be read.") from None
    except BROKEN as error:
        if isinstance(error, BadFile) or isinstance(error, ValueError) and str(error).startswith(str(file)):
            raise
        raise BadFile(f"{file} is not {kind} ({reason(error)}): {remedy}.") from error


def reason(error, most=300) -> str:
    """What an exception says, on one line, without a full stop."""
    said = " ".join(str(error).split()).rstrip(".")[:most]
    match error:
        case RecursionError():
            return "it is nested too deep"
        case KeyError():
            return f"it has no {said}"
        case ValueError() | SafetensorError() if said:
            return said
    return f"{type(error).__name__}: {said}"


def read_bytes(path) -> bytes:
    """Read the bytes of a file. Raises FileNotFoundError, OSError or ValueError with a sentence."""
    with reading(path, "a file"), open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"{path} has more than {LARGEST:,} bytes: it is another file, or give it in parts.")
    return content


def as_text(content, where) -> str:
    """Decode bytes that came from `where`. Raises ValueError with a sentence if they are not UTF-8."""
    with reading(where, "UTF-8 text", "save it so, or fetch it again"):
        return content.removeprefix(BOM).decode()


def read_json(source, where=None, kind=object):
    """Read the JSON value of a file, or of bytes that came from `where`.

    kind: dict or list, if it must be one. Whatever the content, all that is raised is OSError or ValueError with a
    sentence.
    """
    content, where = (source, where) if isinstance(source, bytes) else (read_bytes(source), where or source)
    text = as_text(content, where)
    with reading(where, "JSON", f"it begins with {text[:60]!r} and may be truncated; fetch or write it again"):
        value = json.loads(text, object_pairs_hook=each_once)
    if not isinstance(value, kind):
        raise BadFile(f"{where} holds {text[:60]!r}, expected a JSON {KINDS[kind]}: fetch or write it again.")
    return value


def each_once(pairs):
    """A JSON object as a dict. Raises ValueError if it has a key twice, as which of the two counts is chance."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object has a key twice")
    return value


def read_json_lines(path, kind=dict) -> list:
    """Read a file of JSON lines: [(where, value)], with `where` such as "mine.jsonl, line 3".

    A line ends at a line feed only: text may hold other separators, such as U+2028. Empty lines at the end are
    ignored. Raises OSError or ValueError with a sentence that names the line.
    """
    lines = read_bytes(path).removeprefix(BOM).rstrip().split(b"\n")
    rows = []
    for n, line in enumerate(lines, 1):
        where = f"{path}, line {n}"
        if line.strip():
            rows.append((where, read_json(line, where, kind)))
        elif len(lines) > 1:
            raise ValueError(f"{where} is empty: delete it.")
    return rows


@contextmanager
def writing(path):
    """with writing(path): whatever keeps that file or folder from being written becomes one sentence, an OSError."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        if isinstance(error, OSError) and error.errno is None:  # it is a sentence already
            raise
        why = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OSError(f"cannot write {path} ({why}): make room, or choose another place.") from None


def check_out(path):
    """Make the missing folders of a file that is to be written, and see that it can be.

    Raises OSError with a sentence if not, or if there is a link or a device, which would itself be replaced.
    """
    path = Path(path)
    with writing(path):
        if path.is_symlink() or path.exists() and not path.is_file():
            raise OSError(f"cannot write {path}, as it is a folder, a link or a device: choose another place.")
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(path) as new:
            new.touch()


@contextmanager
def unfinished(path):
    """with unfinished(path) as new: the name .NAME.PID of a file or folder that is not whole yet; it goes at the end.

    What killed processes left under such names is removed first.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}")
    remove = lambda each: shutil.rmtree(each) if each.is_dir() else each.unlink(missing_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if left == new or left.suffix[1:].isdigit() and not _runs(int(left.suffix[1:])):
            remove(left)  # in a container each start may have the same number
    try:
        yield new
    finally:
        remove(new)


def _runs(pid):
    """Whether a process runs. On Windows all do, as asking would end it."""
    try:
        os.name == "nt" or os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is another user's
        pass
    return True


@contextmanager
def temporary_folder(folder):
    """with temporary_folder(folder) as new: an empty folder within, which goes at the end, or at the next start."""
    with writing(folder), unfinished(Path(folder) / "new") as new:
        new.mkdir(parents=True)
        yield new


@contextmanager
def replacing(path):
    """with replacing(path) as new: write the file `new`, which then replaces `path`. Missing folders are made.

    A failure or an interruption leaves the old file. Raises OSError with a sentence if the new one cannot be written.
    """
    path = Path(path)
    check_out(path)
    with writing(path), unfinished(path) as new:
        yield new
        os.replace(new, path)


def replace_file(path, content) -> Path:
    """Write bytes to a file, whole or not at all; missing folders are made. Raises OSError with a sentence."""
    with replacing(path) as new:
        new.write_bytes(content)
    return Path(path)


def append_lines(path, lines):
    """Add values to a file of JSON lines; missing folders are made.

    Raises OSError or ValueError with a sentence if the file cannot be written, or is of another kind.
    """
    path = Path(path)
    check_out(path)
    before = read_bytes(path) if path.exists() else b""
    if before:
        read_json_lines(path)
    with writing(path), open(path, "a", newline="\n") as file:
        if before and not before.endswith(b"\n"):
            file.write("\n")
        file.writelines(json.dumps(line) + "\n" for line in lines)


def publish(text, path):
    """Write a text to a file, then print it: the file is whole even if the output is cut, as by head."""
    content = text.encode(errors="backslashreplace")  # the name of a task need not be UTF-8
    replace_file(path, content)
    print(f"\n{content.decode()}")


@contextmanager
def lock(path):
    """with lock(path): no other process can lock that folder or file. Raises ValueError if one has."""
    path = Path(path)
    file = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    try:
        with FileLock(file, timeout=0):
            try:
                yield
            finally:
                with suppress(OSError):  # Windows removes it only behind the release, and does so itself
                    file.unlink()
    except Timeout:
        raise ValueError(f"another process is at work in {path}: wait for its end, or take another "
                         f"{'folder' if path.is_dir() else 'file'}.") from None

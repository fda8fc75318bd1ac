"""Read and write files: an error says in a sentence what is wrong, and no file is left half written."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LARGEST, DEEPEST = 2**30, 100  # bytes of a file that is read at once; levels of nested lists and objects
KINDS = {dict: "object", list: "list"}
BOM = b"\xef\xbb\xbf"  # the byte order mark that some editors put first


def read_bytes(path) -> bytes:
    """Read the bytes of a file. Raises FileNotFoundError, OSError or ValueError with a sentence."""
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}: give one that is there.") from None
    except OSError as error:
        raise OSError(f"cannot read {path} ({error.strerror}): give a file that can be read.") from None
    if len(content) > LARGEST:
        raise ValueError(f"{path} has more than {LARGEST:,} bytes: it is another file, or give it in parts.")
    return content


def as_text(content, where) -> str:
    """Decode bytes that came from `where`. Raises ValueError with a sentence if they are not UTF-8."""
    try:
        return content.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text (byte {error.start}): save it so, or fetch it again.") from None


def read_json(source, where=None, kind=object):
    """Read the JSON value of a file, or of bytes that came from `where`.

    kind: dict or list, if it must be one. Whatever the content, all that is raised is OSError or ValueError with a
    sentence.
    """
    content, where = (source, where) if isinstance(source, bytes) else (read_bytes(source), where or source)
    text = as_text(content, where)
    try:
        value = json.loads(text)
        too_deep = _is_deeper(value, DEEPEST)
    except RecursionError:
        too_deep = True
    except ValueError as error:
        raise ValueError(f"{where} is not JSON, perhaps truncated ({error}): {text[:60]!r}; fetch or write it "
                         "again.") from None
    if too_deep:
        raise ValueError(f"{where} is nested more than {DEEPEST} deep: {text[:20]!r}; fetch or write it again.")
    if not isinstance(value, kind):
        raise ValueError(f"{where} holds {text[:60]!r}, expected a JSON {KINDS[kind]}: fetch or write it again.")
    return value


def _is_deeper(value, n):
    level = [value]
    for _ in range(n + 1):
        level = [part for outer in level if isinstance(outer, (dict, list))
                 for part in (outer.values() if isinstance(outer, dict) else outer) if isinstance(part, (dict, list))]
    return bool(level)


def read_json_lines(path, kind=dict) -> list:
    """Read a file of JSON lines: [(where, value)], with `where` such as "mine.jsonl, line 3".

    A line ends at a line feed only: text may hold other separators, such as U+2028. Empty lines at the end are
    ignored. Raises OSError or ValueError with a sentence that names the line.
    """
    lines = read_bytes(path).removeprefix(BOM).rstrip().split(b"\n")
    if lines == [b""]:
        return []
    if empty := next((n for n, line in enumerate(lines, 1) if not line.strip()), None):
        raise ValueError(f"{path}, line {empty} is empty: delete it.")
    return [(where, read_json(line, where, kind)) for n, line in enumerate(lines, 1) for where in [f"{path}, line {n}"]]


@contextmanager
def replacing(path):
    """with replacing(path) as new: write the file `new`, which then replaces `path`. Missing folders are made.

    A failure or an interruption leaves the old file. Raises OSError with a sentence if the new one cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors has its own error for a full disk
        if isinstance(error, OSError) and error.errno is None:  # it is a sentence already
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OSError(f"cannot write {path} ({reason}): make room, or choose another place.") from None
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


def replace_file(path, content) -> Path:
    """Write bytes to a file, whole or not at all; missing folders are made. Raises OSError with a sentence."""
    with replacing(path) as new:
        new.write_bytes(content)
    return Path(path)


def append_lines(path, lines):
    """Add values to a file of JSON lines; missing folders are made. Raises OSError with a sentence if it fails."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror}): give another file with --out.") from None


def publish(text, path):
    """Write a text to a file, then print it: the file is whole even if the output is cut, as by head."""
    replace_file(path, text.encode())
    print(f"\n{text}")


@contextmanager
def lock(folder):
    """with lock(folder): no other process can lock that folder. Raises ValueError if one has. No-op on Windows."""
    here = os.open(folder, os.O_RDONLY)
    try:
        if fcntl:
            try:
                fcntl.flock(here, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process is at work in {folder}: wait for its end, or take another "
                                 "folder.") from None
        yield
    finally:
        os.close(here)

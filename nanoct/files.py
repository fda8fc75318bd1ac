"""Files: what is wrong with one that is read is said in a sentence, and one that is written is never half."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LARGEST, DEEPEST = 2**30, 100  # bytes of a file that is read at once; lists and objects in each other
KINDS = {dict: "object", list: "list"}
BOM = b"\xef\xbb\xbf"  # the mark that some editors put first


def read_bytes(path) -> bytes:
    """The bytes of a file. Raises FileNotFoundError, OSError or ValueError with a sentence."""
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
    """Bytes that came from `where` as text. ValueError with a sentence if they are not UTF-8."""
    try:
        return content.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text (byte {error.start}): save it so, or fetch it again.") from None


def read_json(source, where=None, kind=object):
    """The JSON value of a file, or of bytes that came from `where`.

    kind: dict or list, if it must be one. Raises OSError or ValueError with a sentence, whatever is in it.
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
    """[(where, value)] of a file of JSON lines, `where` such as "mine.jsonl, line 3".

    A line ends at a line feed and nowhere else: text may hold other separators, as U+2028. Empty lines at the end are
    passed over. Raises OSError or ValueError with a sentence that names the line.
    """
    lines = read_bytes(path).removeprefix(BOM).rstrip().split(b"\n")
    if lines == [b""]:
        return []
    if empty := next((n for n, line in enumerate(lines, 1) if not line.strip()), None):
        raise ValueError(f"{path}, line {empty} is empty: delete it.")
    return [(where, read_json(line, where, kind)) for n, line in enumerate(lines, 1) for where in [f"{path}, line {n}"]]


@contextmanager
def replacing(path):
    """with replacing(path) as new: write the file `new`; then it takes the place of `path`, folders made.

    What fails or is interrupted leaves the old one. OSError with a sentence where it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:  # safetensors says in its own way that a disk is full
        if isinstance(error, OSError) and error.errno is None:  # a sentence already
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise OSError(f"cannot write {path} ({reason}): make room, or choose another place.") from None
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


def replace_file(path, content) -> Path:
    """Write bytes to a file, folders made: it is the old one or the new one, never half. OSError with a sentence."""
    with replacing(path) as new:
        new.write_bytes(content)
    return Path(path)


def publish(text, path):
    """Write a text to a file, whole, and then print it: a reader who leaves early, such as head, costs nothing."""
    replace_file(path, text.encode())
    print(f"\n{text}")


@contextmanager
def lock(folder):
    """with lock(folder): this process alone is in such a block of that folder. ValueError if another one is."""
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

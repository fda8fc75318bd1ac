"""Files that are the old one or the new one, never half."""

import os
from pathlib import Path


def replace_file(path, content) -> Path:
    """Write bytes to a file, folders made: it is the old one or the new one, never half. OSError with a sentence."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror}): choose another place.") from None
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)
    return path

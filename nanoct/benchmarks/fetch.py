"""Download the public files of a benchmark into a folder that its reader takes.

    python -m nanoct.benchmarks.fetch bbh mmlu arc nlp_lr --out data

An interrupted download goes on where it stopped. SHA256SUMS holds the sums of half of the files, those that nanoct's own
counts were made on; one that differs is refused. The others must be complete archives, and every reader checks its rows.
"""

import hashlib
import re
import shutil
import tarfile
import zipfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import snapshot_download
from tqdm import tqdm

from nanoct import cli

SUMS = Path(__file__).with_name("SHA256SUMS")
NLP_LR = """ai2_arc climate_fever codah commonsense_qa dream ethos-national_origin ethos-race ethos-religion
    financial_phrasebank glue-mrpc glue-rte glue-wnli hate_speech18 medical_questions_pairs openbookqa poem_sentiment qasc
    quarel quartz-no_knowledge quartz-with_knowledge sick superglue-cb superglue-copa tweet_eval-hate
    tweet_eval-stance_atheism tweet_eval-stance_feminist""".split()


@dataclass
class Archive:
    """A zip or tar; of its members those that fit a pattern are kept, under what the pattern's first group matches."""

    url: str
    keep: str
    n_file: int


@dataclass
class Hub:
    """A dataset of the Hugging Face hub, which checks sizes and sums of its own; `inside` is what to leave out of the paths."""

    name: str
    revision: str
    patterns: list
    inside: str


SOURCES = {
    "bbh": Archive("https://github.com/suzgunmirac/BIG-Bench-Hard/archive/refs/heads/main.zip",
                   r"[^/]+/(bbh/[^/]+\.json|cot-prompts/[^/]+\.txt)", 54),
    "mmlu": Archive("https://people.eecs.berkeley.edu/~hendrycks/data.tar", r"[^/]+/((?:test|dev)/[^/]+\.csv)", 114),
    "arc": Archive("https://github.com/fchollet/ARC-AGI/archive/refs/heads/master.zip",
                   r"[^/]+/data/((?:training|evaluation)/[^/]+\.json)", 800),
    "nlp_lr": Hub("allenai/metaicl-data", "9e999b5f6c4083a8c2309df57f06316a72de78ec",
                  [f"data/{task}/{task}_16_*_{part}.jsonl" for task in NLP_LR for part in ("train", "test")], "data"),
}


def download(url, file):
    """Bytes of a url into a file, going on behind what file.part has. Raises OSError with a sentence where that fails."""
    if file.exists():
        return
    part = file.with_name(file.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    try:
        with urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=60) as answer:
            goes_on = answer.status == 206
            total = int(answer.headers.get("Content-Length") or 0) + have * goes_on
            bar = tqdm(total=total or None, initial=have * goes_on, unit="B", unit_scale=True, desc=file.name)
            with open(part, "ab" if goes_on else "wb") as f, bar:
                while block := answer.read(2**20):
                    f.write(block)
                    bar.update(len(block))
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError) and error.code == 416:  # nothing behind what is there: it was complete, or is of another file
            part.unlink()
        raise OSError(f"{url} could not be fetched ({error}); the same command goes on where it stopped. Without a network: "
                      f"fetch it elsewhere and put it at {file}.") from None
    if total and part.stat().st_size != total:
        raise OSError(f"{url} ended after {part.stat().st_size} of {total} bytes; the same command goes on from there.")
    part.replace(file)


def unpack(archive, file, folder):
    """The members of an archive's file that are kept, written below a folder. Raises ValueError if it is broken or lacks some."""
    try:
        with zipfile.ZipFile(file) if zipfile.is_zipfile(file) else tarfile.open(file) as packed:
            names = packed.namelist() if isinstance(packed, zipfile.ZipFile) else packed.getnames()
            kept = {name: match[1] for name in names if (match := re.fullmatch(archive.keep, name))}
            for name, path in tqdm(kept.items(), desc=str(folder)):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                with packed.open(name) if isinstance(packed, zipfile.ZipFile) else packed.extractfile(name) as source:
                    with open(folder / path, "wb") as target:
                        shutil.copyfileobj(source, target)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{file} is broken ({error}): delete it and run the same command again.") from None
    if len(kept) < archive.n_file:
        raise ValueError(f"{file} holds {len(kept)} of the {archive.n_file} files of {folder.name}: delete it and run the same command "
                         "again.")


def check(folder):
    """How many files of a folder have a known sum. Raises ValueError on one whose sum is another."""
    known = [line.split(maxsplit=1) for line in SUMS.read_text().splitlines()]
    files = [(digest, folder.parent / path) for digest, path in known if path.startswith(f"{folder.name}/")]
    there = [(digest, file) for digest, file in files if file.exists()]
    for digest, file in there:
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{file} is not the public file of that name (its SHA-256 is another): delete it and run the same "
                             "command again.")
    return len(there)


def fetch(name, out):
    """The folder of a benchmark below `out`, complete. Raises OSError or ValueError with a sentence where that fails."""
    source, folder = SOURCES[name], out / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot write {folder} ({error.strerror}): give another folder with --out.") from None
    if isinstance(source, Archive):
        file = out / (name + Path(source.url).suffix)
        download(source.url, file)
        unpack(source, file, folder)
    else:
        try:
            snapshot_download(source.name, repo_type="dataset", revision=source.revision, allow_patterns=source.patterns,
                              local_dir=folder)
        except Exception as error:  # the library has many, and all mean the same here
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise OSError(f"the dataset {source.name} could not be fetched ({said:.100}); the same command goes on where it stopped. "
                          f"Without a network: put {source.inside}/<task> of https://huggingface.co/datasets/{source.name} at "
                          f"{folder}/<task>.") from None
        for path in (folder / source.inside).iterdir():
            shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
    print(f"{folder}: {sum(file.is_file() for file in folder.rglob('*'))} files, {check(folder)} of them with a known SHA-256; "
          f"python -m nanoct.benchmarks.{name} --data {folder} --show 1")


def main():
    p = cli.Parser(prog="nanoct.benchmarks.fetch", description=__doc__.split("\n")[0])
    p.add_argument("names", nargs="+", choices=list(SOURCES), metavar="NAME", help=", ".join(SOURCES))
    p.add_argument("--out", type=Path, default=Path("data"))
    args = p.parse_args()
    for name in args.names:
        fetch(name, args.out)


if __name__ == "__main__":
    cli.run(main)

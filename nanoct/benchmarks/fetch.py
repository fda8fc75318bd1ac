"""Download the public files of a benchmark into a folder that its reader takes.

    nanoct benchmarks.fetch bbh mmlu arc nlp_lr --out data

An interrupted download continues where it stopped. SHA256SUMS holds the sums of half of the files, those that nanoct's
own counts were made on; a file with another sum is refused. For the other files, archives must be complete, and every
reader checks its rows. A broken download is renamed, and the same command fetches it again.
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
from nanoct.io.files import read_bytes, reason, replace_file, writing

SUMS = Path(__file__).with_name("SHA256SUMS")
NLP_LR = """ai2_arc climate_fever codah commonsense_qa dream ethos-national_origin ethos-race ethos-religion
    financial_phrasebank glue-mrpc glue-rte glue-wnli hate_speech18 medical_questions_pairs openbookqa poem_sentiment
    qasc quarel quartz-no_knowledge quartz-with_knowledge sick superglue-cb superglue-copa tweet_eval-hate
    tweet_eval-stance_atheism tweet_eval-stance_feminist""".split()


@dataclass
class Archive:
    """A zip or tar. Members that match the pattern `keep` are kept, under the path that its first group matches."""

    url: str
    keep: str
    n_file: int


@dataclass
class Hub:
    """A dataset of the Hugging Face hub, which checks sums itself. `inside` is the dataset's folder that we want."""

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
    """Download a URL to `file`; resume a partial file.part. Raises OSError if that fails."""
    if file.exists():
        return
    part = file.with_name(file.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    try:
        with urlopen(Request(url, headers={"Range": f"bytes={have}-"} if have else {}), timeout=60) as answer:
            start, length = have if answer.status == 206 else 0, answer.headers.get("Content-Length", "")
            total = start + int(length) if length.isdigit() else None
            bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=file.name)
            with open(part, "ab" if start else "wb") as f, bar:
                while block := answer.read(2**20):
                    f.write(block)
                    bar.update(len(block))
    except (OSError, HTTPException) as error:
        if isinstance(error, HTTPError) and error.code == 416:  # no more bytes: the part is whole, or of another file
            part.unlink()
        raise OSError(f"{url} could not be fetched ({error}); the same command goes on where it stopped. Without a "
                      f"network: fetch it elsewhere and put it at {file}.") from None
    if total is not None and part.stat().st_size != total:
        raise OSError(f"{url} ended after {part.stat().st_size} of {total} bytes; the same command goes on from there.")
    part.replace(file)


def contents(file, keep):
    """Yield (path, bytes) of every file in a zip or tar whose name matches `keep`. Raises ValueError if broken."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as packed:
                for name in packed.namelist():
                    if match := re.fullmatch(keep, name):
                        yield match[1], packed.read(name)
        else:
            with tarfile.open(file) as packed:
                for member in packed:
                    if match := re.fullmatch(keep, member.name):
                        yield match[1], packed.extractfile(member).read()
    except Exception as error:  # an archive can be broken in many ways, and each has its own error
        raise ValueError(f"{file} is broken ({reason(error)})") from None


def set_aside(file):
    """Rename a broken file or folder to NAME.broken; return words that say so."""
    aside = file.with_name(file.name + ".broken")
    if aside.is_dir():
        shutil.rmtree(aside)
    file.replace(aside)
    return f"it is now {aside}, and the same command fetches it anew"


def is_known(path, content):
    """Whether SHA256SUMS has the sum of a file, such as bbh/bbh/x.json. Raises ValueError if it has another."""
    known = dict(line.split(maxsplit=1)[::-1] for line in SUMS.read_text().splitlines())
    if path in known and hashlib.sha256(content).hexdigest() != known[path]:
        raise ValueError(f"{path} is not the public file of that name (its SHA-256 is another), so the download is "
                         "broken")
    return path in known


def fetch(name, out):
    """Fetch all files of a benchmark into its folder below `out`. Raises OSError or ValueError if that fails.

    What is broken, incomplete or of another sum is renamed first, so that it is fetched again.
    """
    source, folder = SOURCES[name], out / name
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if isinstance(source, Archive):
        whole, n_file = out / (name + Path(source.url).suffix), source.n_file
        download(source.url, whole)
        files = lambda: contents(whole, source.keep)
    else:
        whole, n_file = folder / source.inside, 1
        from_hub(source, folder)
        files = lambda: ((file.relative_to(whole).as_posix(), read_bytes(file)) for file in whole.rglob("*")
                         if file.is_file())
    try:
        known = {path: is_known(f"{name}/{path}", content) for path, content in files()}
        if len(known) < n_file:
            raise ValueError(f"{whole} holds {len(known)} of the {n_file} files of {name}")
        for path, content in tqdm(files(), desc=str(folder)):  # where readers look, once all are right
            replace_file(folder / path, content)
    except ValueError as error:
        said = set_aside(whole) if whole.exists() else "look at its page on the hub"
        raise ValueError(f"{error}; {said}.") from None
    print(f"{folder}: {len(known)} files, {sum(known.values())} of them with a known SHA-256; "
          f"python -m nanoct.benchmarks.{name} --data {folder} --show 1")


def from_hub(source, folder):
    """Download the files of a hub dataset into a folder. Raises OSError if that fails."""
    try:
        snapshot_download(source.name, repo_type="dataset", revision=source.revision, allow_patterns=source.patterns,
                          local_dir=folder)
    except Exception as error:  # the library raises many kinds, and all mean the same here
        there = f"{source.inside}/<task> of https://huggingface.co/datasets/{source.name}"
        raise OSError(f"the dataset {source.name} could not be fetched ({reason(error, 100)}); the same command "
                      f"goes on where it stopped. Without a network: put {there} at {folder}/<task>.") from None


def main():
    p = cli.Parser(prog="nanoct benchmarks.fetch", description=__doc__)
    p.add_argument("names", nargs="+", choices=list(SOURCES), metavar="NAME", help=", ".join(SOURCES))
    p.add_argument("--out", default="data", help="each benchmark gets a folder in this one; default: data")
    args = p.parse_args()
    for name in args.names:
        fetch(name, Path(args.out))


if __name__ == "__main__":
    cli.run(main)

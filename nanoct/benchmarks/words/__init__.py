"""Words: 35 tasks of real words, understood at a glance, such as hot -> cold. The lists come with the package.

    nanoct benchmarks.words --show 2

A context is "x₁ -> y₁\\nx₂ -> y₂\\n…". An answer ends with the line break, which is tokenised apart so that all answers
end alike. It is right if all its tokens are. There is no instruction and no beginning-of-sequence token. 10 demos
(solved examples) are drawn by seed; the other 50 lines of a task are queries. A query is dropped if the context and its
row exceed 2,048 tokens. Files: F/<task>.tsv, UTF-8, one pair "input<TAB>output" a line, no header; --data F takes a
folder of your own.

The split was fixed before anything was measured: settings are chosen on "validation", results are reported on "test".
Within each kind, in alphabetical order, every third task is for validation, from the second on. So every kind is on
both sides. All tasks of a folder of your own are "test".
"""

from pathlib import Path

from nanoct.benchmarks import common
from nanoct.fewshot import Demo, Query, Task
from nanoct.io.files import BOM, as_text, read_bytes

K, LENGTH = 10, 2048
SEEDS = (42, 43, 44)
PACKAGED = "words"  # the name of the folder that comes with the package
KINDS = {
    "meaning": "animal_class animal_or_thing antonym capital category continent currency language nationality "
               "opposite_gender",
    "grammar": "adverb agent comparative gerund past_participle past_tense plural superlative third_person",
    "translation": "english_to_french english_to_german english_to_spanish",
    "form": "first_letter first_two last_letter length next_number number_word reverse starts_with_vowel upper_case",
    "labels": "animal_foo_plant_bar city_dax_country_wug food_x_clothes_y_tool_z good_nim_bad_tob",
}
KINDS = {kind: names.split() for kind, names in KINDS.items()}
VALIDATION = [name for names in KINDS.values() for name in sorted(names)[1::3]]
REPORTED = [name for names in KINDS.values() for name in names if name not in VALIDATION]
POOLS = {"validation": VALIDATION, "test": REPORTED}


def where(folder):
    """Return the folder, or the packaged one for None and "words"; "./words" is a folder of your own."""
    return Path(__file__).parent if folder in (None, PACKAGED) else Path(folder)


def tasks(folder=None):
    """Names of the tasks in a folder. Raises FileNotFoundError if there is none."""
    files = common.folders(where(folder), "*.tsv", "lists, <task>.tsv, of lines input<TAB>output")
    return [file.stem for file in files]


def pools(folder=None):
    """{"validation": names, "test": names} of the tasks in a folder."""
    return POOLS if where(folder).resolve() == where(None).resolve() else {"validation": [], "test": tasks(folder)}


def make_task(folder, name, tokenizer, seed, k=K, length=LENGTH, limit_queries=None):
    """Return the Task and its Counts. Raises FileNotFoundError or ValueError if the file is missing or not as above."""
    file, end = where(folder) / f"{name}.tsv", tokenizer.encode("\n")
    given, asked = common.draw(read(file), k, seed, file)
    x = lambda text: tokenizer.encode(f"{text} ->")
    y = lambda text: tokenizer.encode(f" {text}") + end
    task = Task(name, [Demo(x(i), y(o)) for i, o in given], [])
    return common.fill(task, (Query(x(i), y(o)) for i, o in asked), common.Counts(), length, limit_queries)


def read(file):
    """Return the (input, output) of all lines of a file, without blanks around them or blank lines at the end."""
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {file}: take other --tasks, or write it, a line input<TAB>output a "
                                "pair.")
    lines = read_bytes(file).removeprefix(BOM).rstrip(b" \r\n").splitlines()
    pairs = {}
    for n, line in enumerate(lines, 1):
        where = f"{file}, line {n}"
        cells = [cell.strip() for cell in as_text(line, where).split("\t")]
        if len(cells) != 2 or not all(cells):
            raise ValueError(f"{where} is {line.decode()[:60]!r}: write input<TAB>output.")
        x, y = cells
        if x in pairs:
            raise ValueError(f"{where} has the input {x!r:.60} of line {[*pairs].index(x) + 1} again: leave one out.")
        pairs[x] = y
    if not pairs:
        raise ValueError(f"{file} is empty: write a line input<TAB>output a pair.")
    return [[x, y] for x, y in pairs.items()]

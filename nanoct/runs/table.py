"""Cells and tables as Markdown. Imports nothing of the package, so that printing a table loads no world."""


def table(rows, header):
    """Rows of strings as a Markdown table, the first column aligned left, the others right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        lines.append("| " + " | ".join(cells) + " |")
    rule = ["-" * (width + 1) for width in widths]
    lines.insert(1, "|" + "|".join([rule[0] + "-", *(dashes + ":" for dashes in rule[1:])]) + "|")
    return "\n".join(lines)


def shown(number, form):
    """A number in the format `form`; nothing for None."""
    return "" if number is None else f"{number:{form}}"


def many(lines, field):
    """How many tasks or seeds (the field) the lines have: '1 task', '2 tasks'."""
    n = len({line[field] for line in lines})
    return f"{n} {field}{'s' * (n != 1)}"


def named_values(config):
    """The settings of a config as text: 'n_step=4 lr=0.1'."""
    return " ".join(f"{name}={value}" for name, value in config.items())


def tasks_a_world(lines):
    """The head of a table with a column or row per world: the pool, and how many tasks each world has."""
    tasks = {}
    for line in lines:
        tasks.setdefault(line["world"], set()).add(line["task"])
    counts = sorted({len(names) for names in tasks.values()})
    return f"{lines[0]['pool'].replace('_', '-')} pool, {' or '.join(map(str, counts))} tasks a world"


def one_benchmark(lines, model):
    """The head of a table about one benchmark and one model: how many tasks, of which pool, at which k."""
    first = lines[0]
    return f"{first['world']}, {model}: {many(lines, 'task')} of the {first['pool']} pool, k = {first['k'] or 'all'}"


def seeds_of_demos(lines):
    """The seeds of the lines as text: 'demos of seed 42, 43'."""
    return "demos of seed " + ", ".join(str(seed) for seed in dict.fromkeys(line["seed"] for line in lines))

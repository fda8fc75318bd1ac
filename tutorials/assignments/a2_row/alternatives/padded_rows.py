"""Assignment 2 as the obvious way has it: a padded row for each pair, and loops."""

import random
from types import SimpleNamespace

import torch


def pack(pairs, start):
    present = [number for number in range(len(pairs)) if pairs[number] is not None]
    longest = max(len(pairs[number][0]) + len(pairs[number][1]) - 1 for number in present)
    ids = torch.zeros(len(present), longest, dtype=torch.long)
    places = torch.zeros_like(ids)
    numbers = torch.full_like(ids, -1)
    at, wanted, share = [], [], []
    for line, number in enumerate(present):
        question, answer = pairs[number]
        whole = list(question) + list(answer)
        for step in range(len(whole) - 1):
            ids[line, step] = whole[step]
            places[line, step] = start + step
            numbers[line, step] = number
            following = step + 1
            if following >= len(question):
                at.append(line * longest + step)
                wanted.append(whole[following])
                share.append(1 / sum(len(pairs[other][1]) for other in present))
    return SimpleNamespace(tokens=ids, positions=places, pair=numbers, where=torch.tensor(at),
                           target=torch.tensor(wanted), weight=torch.tensor(share))


def visible(owner, k, leave_one_out, p, generator):
    table = torch.zeros(k, len(owner), dtype=torch.bool)
    dice = random.Random()
    if p:
        dice.seed(int(torch.randint(2**40, (), generator=generator)))
    for entry, demo in enumerate(owner.tolist()):
        for number in range(k):
            own = leave_one_out and demo == number
            dropped = dice.random() < p
            table[number, entry] = not own and not dropped
    return table


def row_mask(row, seen):
    lines, width = row.tokens.shape
    before = seen.shape[1]
    allowed = torch.zeros(lines, width, before + width, dtype=torch.bool)
    for line in range(lines):
        for step in range(width):
            number = int(row.pair[line, step])
            if number < 0:
                allowed[line, step, before + step] = True  # padding sees itself, so that its softmax is defined
                continue
            for entry in range(before):
                allowed[line, step, entry] = seen[number, entry]
            for other in range(step + 1):
                allowed[line, step, before + other] = True
    return allowed

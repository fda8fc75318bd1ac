"""Tables and figures of the coin-flip study, from the lines of its runs."""


def report(lines, preset, out):
    pass

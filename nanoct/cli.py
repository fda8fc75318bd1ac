"""Command lines that answer a mistake with one sentence."""

import argparse
import sys


class Parser(argparse.ArgumentParser):
    """argparse without the usage block on an error: what is wrong, and where to look."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (--help shows all options)\n")


def value(name, text, kind):
    """The text of an option as an int, float, bool ("True" or "False") or str. ValueError with its name if it is none."""
    try:
        return {"True": True, "False": False}[text] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise ValueError(f"{name}={text!r} is no {kind.__name__}.") from None


def run(main):
    """Call main(); what a user can cause ends as one sentence on stderr with exit code 2, never as a stack trace."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from what is saved")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

"""Command lines that answer a mistake with one sentence."""

import argparse
import sys


class Parser(argparse.ArgumentParser):
    """argparse without the usage block on an error: what is wrong, and where to look."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message} (--help shows all options)\n")


def run(main):
    """Call main(); what a user can cause ends as one sentence on stderr with exit code 2, never as a stack trace."""
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped; the same command goes on from what is saved")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

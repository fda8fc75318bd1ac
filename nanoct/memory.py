"""Compare estimated with measured memory of every method (costs/memory.py)."""

from nanoct import cli
from nanoct.costs.memory import main

if __name__ == "__main__":
    cli.run(main)

"""`python -m nanoct.speed`: the command of nanoct/costs/speed.py."""

from nanoct import cli
from nanoct.costs.speed import main

if __name__ == "__main__":
    cli.run(main)

"""`python -m nanoct.leak`: the command of nanoct/studies/leak.py."""

from nanoct import cli
from nanoct.studies.leak import main

if __name__ == "__main__":
    cli.run(main)

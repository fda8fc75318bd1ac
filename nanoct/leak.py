"""What leaks in CT-Prompt's variant of one pass (studies/leak.py)."""

from nanoct import cli
from nanoct.studies.leak import main

if __name__ == "__main__":
    cli.run(main)

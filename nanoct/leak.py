"""What leaks if CT-Prompt runs once for all pairs (studies/leak.py)."""

from nanoct import cli
from nanoct.studies.leak import main

if __name__ == "__main__":
    cli.run(main)

"""Compare every method's seconds and memory with transformers and peft (costs/speed.py)."""

from nanoct import cli
from nanoct.costs.speed import main

if __name__ == "__main__":
    cli.run(main)

"""Look at tasks of real words: `nanoct benchmarks.words --show 2`."""

from nanoct import cli
from nanoct.benchmarks import common, words

if __name__ == "__main__":
    cli.run(lambda: common.main(words))

import sys

from nanoct import cli
from nanoct.benchmarks import common, words

sys.argv[1:1] = ["--data", words.PACKAGED]  # the packaged lists, unless another --data follows
cli.run(lambda: common.main(words))

"""The embedded worlds: small, generated, readable by a person. One vocabulary, one checkpoint in weights/nano.

Every world has `pools()`, a training and a held-out pool that are disjoint as functions, `make_task` and
`pairs`, which pretraining reads.
"""

from pathlib import Path

from nanoct.benchmarks.nano import strings

WORLDS = {"strings": strings}
FOLDER = Path(__file__).parents[3] / "weights" / "nano"  # the model meta-trained on them
VOCABULARY = [strings.BOS, strings.EQUALS, strings.END, *strings.LETTERS]

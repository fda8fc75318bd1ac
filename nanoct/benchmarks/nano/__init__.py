"""The embedded worlds: small, generated, readable by a person. One vocabulary, one checkpoint in weights/nano.

Every world has `pools()`, a training and a held-out pool that are disjoint as functions, `make_task` and
`pairs`, which pretraining reads.
"""

from nanoct.benchmarks.nano import strings

WORLDS = {"strings": strings}
VOCABULARY = [strings.BOS, strings.EQUALS, strings.END, *strings.LETTERS]

"""Write the conformance vectors: nanoct conformance --out FOLDER."""

from functools import partial

from nanoct import cli
from nanoct.conformance import main
from nanoct.conformance.neighbours import MAP

if __name__ == "__main__":
    cli.run(partial(main, MAP))

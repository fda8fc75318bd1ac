"""Write the conformance vectors: nanoct conformance --out FOLDER."""

from nanoct import cli
from nanoct.conformance import main

if __name__ == "__main__":
    cli.run(main)

"""What the tutorials share: full and quick runs, claims, planted bugs, and how figures look.

NANOCT_QUICK=1 makes a run take seconds, as in the test suite: `few` takes the smaller number, and a `claim` about a
measurement is printed and not asserted. What must hold exactly is a plain `assert`, in both kinds of run.
"""

import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch

from nanoct.runs.plots import style

if sys.flags.optimize:
    sys.exit("A lesson asserts what it claims, which python -O leaves out: start it without, or unset PYTHONOPTIMIZE.")
os.chdir(Path(__file__).resolve().parent)  # the files of a lesson are beside it, wherever it is started
QUICK = os.environ.get("NANOCT_QUICK") == "1"
torch.set_num_threads(1)  # the built-in models are so small that a second thread makes them slower
if "ipykernel" in sys.modules:  # in a notebook figures stand under their cell; a script shows none (runs/plots.py)
    from IPython import get_ipython

    get_ipython().run_line_magic("matplotlib", "inline")

import matplotlib.pyplot as plt  # noqa: E402

warnings.filterwarnings("ignore", message=".*non-interactive.*")
warnings.filterwarnings("ignore", message="IProgress not found")  # a notebook's progress bars, which no lesson shows
plt.rcParams.update({"figure.figsize": (8, 3.6), "figure.dpi": 100, "savefig.dpi": 100, "font.size": 10,
                     "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True})


def few(full, quick):
    """The first number in a full run, the second in a quick one."""
    return quick if QUICK else full


def claim(holds, said):
    """Print a claim about a measurement. Raises AssertionError if it does not hold in a full run."""
    print(("measured: " if not QUICK else "quick run, not a measurement: ") + said)
    assert holds or QUICK, f"this did not come out: {said}"


@contextmanager
def breaks(why):
    """with breaks(why): the check inside must fail, as it has a planted bug; its message is printed."""
    try:
        yield
    except AssertionError as error:
        print(f"caught ({why}): {str(error).splitlines()[0] if str(error) else 'AssertionError'}")
    else:
        raise RuntimeError(f"the planted bug was not noticed: {why}")


def colour(method):
    """The colour of a method, the same in every figure of the project."""
    return style(method)[1]


def label(method):
    return style(method)[0]

"""Assignment 6: an honest table. Write the three functions; the handout says what they do.

Plain Python is enough. T975 is Student's t, for those who want it.
"""

T975 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
        2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]
# the 97.5% quantile at 1, 2, … 30 degrees of freedom; 1.96 far beyond


def macro_f1(predicted: list, gold: list) -> float:
    """Mean F1 over the classes that occur in gold.

    predicted, gold: labels of the same queries, anything that can be hashed. A class that is never predicted has F1 0.
    Raises ValueError if there are no labels, or not as many of both.
    """
    raise NotImplementedError("macro_f1")


def paired(a: list[tuple[str, str, float]], b: list[tuple[str, str, float]]) -> tuple[float, float, float]:
    """How much better method a is than b: (mean difference, low and high end of its 95% interval).

    a, b: (task, query, score), in any order. The same queries in both. The mean is over tasks, which all weigh the
    same; the interval is about other tasks of this kind. With a single task it is (mean, -inf, inf).
    Raises ValueError if a and b are not of the same queries, or if there are none.
    """
    raise NotImplementedError("paired")


def choose(lines: list[tuple[str, str, float]], validation: set[str]) -> str:
    """The setting with the highest mean score over the validation tasks; of equal ones that which comes first in lines.

    lines: (setting, task, score), several of one task where there are several seeds. All tasks weigh the same. Tasks
    that are not in validation are reported later. Only settings with a score for every validation task compete.
    Raises ValueError if there is none.
    """
    raise NotImplementedError("choose")

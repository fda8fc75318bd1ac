"""Intervals: exact Student's t, from two values on, and what tables say of one task and of equal differences."""

from math import atan, cos, isclose, isnan, pi, sqrt

import pytest
from helpers import interval

from nanoct.runs import report, stats

T = {  # n - 1 degrees of freedom: the two-sided quantiles at 90, 95 and 99%, from published tables with ten digits
    1: (6.313751515, 12.70620474, 63.65674116), 2: (2.919985580, 4.302652730, 9.924843201),
    3: (2.353363435, 3.182446305, 5.840909310), 4: (2.131846786, 2.776445105, 4.604094871),
    5: (2.015048373, 2.570581836, 4.032142984), 6: (1.943180281, 2.446911851, 3.707428021),
    7: (1.894578605, 2.364624252, 3.499483297), 8: (1.859548038, 2.306004135, 3.355387331),
    9: (1.833112933, 2.262157163, 3.249835542), 10: (1.812461123, 2.228138852, 3.169272673),
    11: (1.795884819, 2.200985160, 3.105806516), 12: (1.782287556, 2.178812830, 3.054539589),
    15: (1.753050356, 2.131449546, 2.946712883), 20: (1.724718243, 2.085963447, 2.845339710),
    23: (1.713871528, 2.068657610, 2.807335684), 25: (1.708140761, 2.059538553, 2.787435814),
    30: (1.697260887, 2.042272456, 2.749995654), 40: (1.683851013, 2.021075390, 2.704459267),
    60: (1.670648865, 2.000297822, 2.660283029), 120: (1.657650899, 1.979930405, 2.617421145),
}


@pytest.mark.parametrize("freedom", list(T))
def test_students_t_is_that_of_the_tables(freedom):
    for level, t in zip((0.9, 0.95, 0.99), T[freedom]):
        assert isclose(stats.student(freedom + 1, level), t, abs_tol=1e-6)


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 8, 51, 52])
def test_the_probability_is_the_integral_of_the_density(freedom):
    """Of cos(angle)^(freedom - 1) from 0 on, over its integral to pi / 2: the density by angle, by Simpson's rule."""
    def integral(end, n=2000):
        parts = [(1 if i in (0, n) else 4 if i % 2 else 2) * cos(end * i / n) ** (freedom - 1)
                 for i in range(n + 1)]
        return sum(parts) * end / n / 3

    for t in 0.1, 1, 3:
        angle = atan(t / sqrt(freedom))
        assert isclose(stats.within(angle, freedom), integral(angle) / integral(pi / 2), abs_tol=1e-9)
    assert stats.within(0, freedom) == 0 and isclose(stats.within(pi / 2, freedom), 1)


def test_one_value_has_no_interval():
    assert isnan(stats.student(1)) and isnan(interval([3])[1]) and isnan(stats.standard_error([3]))
    assert interval([1, 3]) == (2, pytest.approx(12.7062047)) and stats.student(10_000) < 1.9603


def setting(scores):
    return report.Setting("m", {}, [dict(task=task, seed=0, score=score) for task, score in scores.items()])


def test_one_task_is_shown_without_an_error_and_equal_differences_are_said():
    one, two = setting(dict(a=0.5)), setting(dict(a=0.7, b=0.2))
    assert one.cell == "50.0 ± –" and two.cell == "45.0 ± 25.0"
    assert report.difference(two, one) == "+20.0 ± –"
    assert report.difference(setting(dict(a=0.8, b=0.3)), two) == "+10.0 ± 0.0 (all equal)"
    assert report.difference(two, two) == "+0.0 ± 0.0 (all equal)"
    assert report.difference(setting(dict(a=0.8, b=0.2)), two) == f"+5.0 ± {5 * 12.7062:.1f}"

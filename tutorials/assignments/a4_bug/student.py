"""A4: your five bugs. python a4_bug/draw.py "your name" writes them; handout.md says what to hand in."""

NAME = ""  # your name: it draws your five


def fix_1() -> tuple[str, str]:
    """(a piece of bug_1.py that occurs there once, what stands there when the bug is fixed)."""
    raise NotImplementedError("fix_1")


def fix_2() -> tuple[str, str]:
    raise NotImplementedError("fix_2")


def fix_3() -> tuple[str, str]:
    raise NotImplementedError("fix_3")


def fix_4() -> tuple[str, str]:
    raise NotImplementedError("fix_4")


def fix_5() -> tuple[str, str]:
    raise NotImplementedError("fix_5")


def catch_1(step) -> None:
    """Raises AssertionError on a step with bug 1, and is silent on a correct one, however it is laid out."""
    raise NotImplementedError("catch_1")


def catch_2(step) -> None:
    raise NotImplementedError("catch_2")


def catch_3(step) -> None:
    raise NotImplementedError("catch_3")


def catch_4(step) -> None:
    raise NotImplementedError("catch_4")


def catch_5(step) -> None:
    raise NotImplementedError("catch_5")

"""How far an evaluation is: one callback for all its stages."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # called with a stage, its steps done and its steps in all


def stage(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    """The callback for one stage, called with its steps done and its steps in all; None where there is none."""
    if progress is None:
        return None

    def report(done: int, total: int) -> None:
        progress(name, done, total)

    return report

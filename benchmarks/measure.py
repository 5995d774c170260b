"""Times side by side, and the memory that a computation needs at its peak."""

import statistics
from collections.abc import Callable
from itertools import accumulate

import torch
from flops import synchronised_time
from torch.profiler import ProfilerActivity, profile


def interleaved(contenders: dict[str, Callable], seconds: float, min_rounds: int = 3) -> dict[str, dict]:
    """
    Times of computations that take turns, each round in the other direction, so that the machine's drift cancels.

    Args:
        contenders: By name; the first is what the others are compared with.
        seconds: How long to go on, after one call of each that does not count.
        min_rounds: At least so many, however long it takes.

    Returns:
        For each name `seconds` a call and `ratio` to the first in the same round: (median, lower, upper quartile).
    """
    for function in contenders.values():
        function()
    times = {name: [] for name in contenders}
    names, start = list(contenders), synchronised_time()
    while len(times[names[0]]) < min_rounds or synchronised_time() - start < seconds:
        for name in names:
            begin = synchronised_time()
            contenders[name]()
            times[name].append(synchronised_time() - begin)
        names.reverse()
    first = times[next(iter(contenders))]
    return {
        name: {"seconds": quartiles(own), "ratio": quartiles([a / b for a, b in zip(own, first)])}
        for name, own in times.items()
    }


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return median, lower, upper


def peak_memory(function: Callable) -> float:
    """MiB of tensors that a second call makes and holds at once, at its peak."""
    function()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    changes = [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(changes), default=0) / 2**20

"""Times side by side, and the memory that a computation needs at its peak."""

import ctypes
import gc
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from jem_hf.flops import synchronised_time


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
    """MiB that a second call needs beyond what is held before; on a CPU (Linux only) best in a process of its own."""
    function()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
    before = _resident("VmRSS")
    function()
    return (_resident("VmHWM") - before) / 2**10


def _resident(field: str) -> int:
    """kB, from Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))

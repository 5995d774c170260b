"""What all samplers share: the steps of chains and what they looked like, states, acceptance."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from zlib import crc32

import torch

LogDensity = Callable[..., torch.Tensor]
Schedule = Callable[[float], float]
Number = float | Schedule
Bounds = tuple[float, float]


def linear(start: float, end: float) -> Schedule:
    """From `start` to `end` by equal differences."""
    return lambda progress: start + (end - start) * progress


def progress_of(step: int, num_steps: int) -> float:
    """From 0 in the first step to 1 in the last; half of a single one."""
    return step / (num_steps - 1) if num_steps > 1 else 0.5


class ChainInfo(NamedTuple):
    """
    What the chains looked like: (B,) each before a step, (num_steps, B) each as returned for all steps done.

    Args:
        step (`int`): Counted from 0; returned as (num_steps,).
        energy: `-log density`, at temperature 1.
        grad_norm: Euclidean norm of the gradient of the log density; None where a sampler needs no gradient.
        saturated: Share of the pixels at or beyond -1 or 1; None where there are no images.
        acceptance: Probability of accepting the move, 1 for samplers that do not reject. A callback, called before
            the move, sees that of the move before; what is returned belongs to the step's own move.
    """

    step: int | torch.Tensor
    energy: torch.Tensor
    grad_norm: torch.Tensor | None
    saturated: torch.Tensor | None
    acceptance: torch.Tensor


class Chain:
    """
    The steps of chains: where a schedule is, what [`ChainInfo`] says of each step, and when they end.

    Args:
        num_steps (`int`): Steps at most, 1 or more, else `ValueError`.
        callback (*optional*): Called with the images, the labels (what there is of them) and [`ChainInfo`] before each
            step; True ends the chains.
        tolerance (`float`, defaults to 0): The chains end once the root mean square of every chain's gradient is
            below it. 0 never ends them, and never waits for the device.
    """

    def __init__(self, num_steps: int, callback: Callable | None = None, tolerance: float = 0.0):
        if num_steps < 1:
            raise ValueError(f"num_steps is 1 or more, not {num_steps}")
        self.num_steps, self.callback, self.tolerance = num_steps, callback, tolerance
        self.infos: list[ChainInfo] = []  # of the steps done
        self.last: ChainInfo  # of the step that has begun

    def __iter__(self) -> Iterator[int]:
        for step in range(self.num_steps):
            self.step = step
            yield step

    def at(self, value: Number) -> float:
        """What a number or a schedule is in this step."""
        return value(progress_of(self.step, self.num_steps)) if callable(value) else value

    def ends(
        self, log_density: torch.Tensor, gradient: torch.Tensor | None, x: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> bool:  # fmt: skip
        """Whether the chains end here, before the move of this step."""
        self.last = info = ChainInfo(
            step=self.step,
            energy=-log_density,
            grad_norm=None if gradient is None else sum_of_squares(gradient.detach()).sqrt(),
            saturated=None if x is None else (x.abs() >= 1).flatten(1).float().mean(1),
            acceptance=self.infos[-1].acceptance if self.infos else torch.ones_like(log_density),
        )
        place = [each for each in (x, labels) if each is not None]
        if self.callback is not None and self.callback(*place, info):
            return True
        if not self.tolerance or gradient is None or info.grad_norm is None:
            return False
        return bool(info.grad_norm.max() < self.tolerance * gradient[0].numel() ** 0.5)

    def moved(self, acceptance: torch.Tensor) -> None:
        """The step is done; its move was accepted with this probability (B,)."""
        self.infos.append(self.last._replace(acceptance=acceptance))

    @property
    def info(self) -> ChainInfo:
        """Of all steps done."""
        num_steps = len(self.infos)
        fields: list[Any] = []
        for each in zip(*(self.infos or [self.last])):  # the last gives the shapes where no step was done
            fields.append(None if each[0] is None else torch.stack(list(map(torch.as_tensor, each)))[:num_steps])
        return ChainInfo(*fields)


class State(NamedTuple):
    """Where chains are: x (B, ...), with the log density (B,) and its gradient (B, ...) there."""

    x: torch.Tensor
    log_density: torch.Tensor
    gradient: torch.Tensor


def evaluate(log_density: LogDensity, x: torch.Tensor, keep_graph: bool = False) -> State:
    """The state at x, in one evaluation; with `keep_graph` its gradient can be differentiated by the parameters."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        value = log_density(x)
        (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=keep_graph)
    return State(x.detach(), value.detach(), gradient)


def renew(log_density: LogDensity, step: int, temperature: float = 1.0) -> bool:
    """Tell a density that a step begins. True where it is another one from now on."""
    return log_density.renew(step, temperature) if hasattr(log_density, "renew") else False


def sum_of_squares(x: torch.Tensor) -> torch.Tensor:
    """(B,) of x (B, ...), in float32 or better."""
    return x.flatten(1).to(torch.promote_types(x.dtype, torch.float32)).square().sum(1)


def noise_of_start(x: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A source of standard normal noise like x (B, ...), of each row by a generator that its values seed."""
    generators: list[torch.Generator] = []

    def draw(like: torch.Tensor) -> torch.Tensor:
        if not generators:
            rows = x.detach().float().cpu().numpy()
            generators.extend(torch.Generator().manual_seed(crc32(row.tobytes())) for row in rows)
        noise = torch.stack([torch.randn(like.shape[1:], generator=each) for each in generators])
        return noise.to(like)

    return draw


def normal_like(x: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    """Standard normal noise of the shape of x."""
    return torch.empty_like(x).normal_(generator=generator)


def metropolis(log_ratio: torch.Tensor, generator: torch.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Which chains (B,) accept their move, and the probability `min(1, exp(log_ratio))`, 0 where that is no number."""
    acceptance = log_ratio.exp().nan_to_num(nan=0.0).clamp(max=1)
    return torch.empty_like(acceptance).uniform_(generator=generator) < acceptance, acceptance


def choose(accepted: torch.Tensor, new: State, old: State) -> State:
    """The new state in the chains (B,) that accept, the old one in the others."""
    pairs = zip(new, old)
    return State(*(torch.where(accepted.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in pairs))


def outside(x: torch.Tensor, bounds: Bounds | None) -> torch.Tensor:
    """Which chains (B,) have a pixel out of bounds, where the density is zero."""
    low, high = bounds or (-torch.inf, torch.inf)
    return ((x < low) | (x > high)).flatten(1).any(1)

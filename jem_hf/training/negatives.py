"""Negative samples of contrastive divergence: where chains start, how far they go, and the buffer where they wait."""

import contextlib
import math
import os
from collections.abc import Iterator

import torch
from transformers import TrainingArguments

from ..models.modeling_jem import JemModel
from ..models.sampling_jem import FLOW_TIME, flow_steps, initial_noise, run_chain
from .augmentation import augment, dequantise, quantise
from .corruptions import corrupt

POLICIES = ("fifo", "reservoir")
NUM_FLOW_STEPS = 8  # of a start by gradient flow: a rough sample, which the chain refines
NUM_NEIGHBOURS = 100  # images of the buffer in which the entropy looks for the nearest, as in Du et al. 2021


@contextlib.contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """`model` in evaluation mode, with neither graph nor gradient for its parameters."""
    trainable, training = [p for p in model.parameters() if p.requires_grad], model.training
    for parameter in trainable:
        parameter.requires_grad_(False)
    model.eval()
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        model.train(training)


class NegativeSampler:
    """
    Runs the chains of a training step; what they end with goes to a replay buffer.

    Args:
        model ([`JemModel`]): The model in training.
        args ([`JemTrainingArguments`]): Its `chain_*`, `buffer_*` and `restart_probability` are followed.
        generator (`torch.Generator`): Source of all randomness, on the device of the model.
    """

    def __init__(self, model: JemModel, args: TrainingArguments, generator: torch.Generator):
        self.model, self.args, self.generator = model, args, generator
        self.buffer = self.offset = None
        self.dtype = torch.uint8 if model.config.autoencoder is None else torch.bfloat16
        self.motion = torch.zeros(())  # mean absolute way of a pixel along the last chains

    def sample(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Run as many chains as there are images `x` (B, C, H, W) of the data, in [-1, 1].

        Returns:
            Images (B, C, H, W), or codes where the energy is of these, and labels (B, K) at their ends, and 100 that
            the buffer held before. They keep the graph of their last step where a term of the loss needs it.
        """
        if self.buffer is None:
            shape = (self.args.buffer_size, *self.model.config.code_shape)
            images = noise_images(shape, self.generator, self._buffer_path(), self.dtype)
            self.buffer = ReplayBuffer(images, self.args.buffer_policy)
        settings = dict(label_distribution=self.model.label_distribution, generator=self.generator)
        chain, last = self.args.chain() | {"bounds": self.model.bounds}, None
        if self.args.chain_random_steps:
            device = self.generator.device
            chain["num_steps"] = int(
                torch.randint(1, self.args.chain_steps + 1, (), generator=self.generator, device=device)
            )
        if self.args.kl_weight or self.args.entropy_weight:
            last = chain | {"num_steps": 1, "gibbs_every": 0}
            chain["num_steps"] -= 1
        with frozen(self.model):
            start = CHAIN_STARTS[self.args.chain_start](self, x)
            x, labels = run_chain(x=start, condition=self.free_labels(x), **settings, **chain)
        if last:
            x, _ = run_chain(x=x, condition=labels, keep_graph=True, **settings, **last)
        self.motion = (x.detach() - start).abs().mean()
        others = self.buffer.sample(NUM_NEIGHBOURS, self.generator)
        self.buffer.push(x.detach(), self.generator)
        return x, labels, others

    @torch.no_grad()
    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """What the energy sees of images."""
        return self.model.encode(x)

    def noise(self, num: int, kind: str = "langevin") -> torch.Tensor:
        """Noise (num, ...): of pixels as [`initial_noise`] says, of codes always normal."""
        kind = kind if self.model.config.autoencoder is None else "flow"
        return initial_noise(kind, (num, *self.model.config.code_shape), self.generator.device, self.generator)

    def clip(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels within their bounds; codes have none."""
        return x if self.model.bounds is None else x.clamp(*self.model.bounds)

    def saturated(self, x: torch.Tensor) -> torch.Tensor:
        """Share of the pixels that are black or white; of codes, beyond 10 standard deviations."""
        return (x.detach().abs() >= (10 if self.model.bounds is None else 1)).float().mean()

    def offset_of(self, log_p_data: torch.Tensor, log_p_samples: torch.Tensor) -> torch.Tensor:
        """b of [`logistic_contrast`], fixed: the middle between data and samples when they first met."""
        if self.offset is None:
            self.offset = 0.5 * (log_p_data.detach().mean() + log_p_samples.detach().mean()).float()
        return self.offset

    def free_labels(self, x: torch.Tensor) -> torch.Tensor:
        """Labels (B, K) of which none is given."""
        return torch.full((len(x), len(self.model.config.attributes)), -1, device=x.device)

    def _buffer_path(self):
        if not self.args.buffer_on_disk:
            return None
        os.makedirs(self.args.output_dir, exist_ok=True)
        return os.path.join(self.args.output_dir, f"replay_buffer_{self.args.process_index}.uint8")

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The buffer, and the offset of the logistic loss; empty before the first chain."""
        state = {} if self.buffer is None else self.buffer.state_dict()
        return state if self.offset is None else state | {"offset": self.offset}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.buffer, offset = None, state.get("offset")
        self.offset = None if offset is None else offset.to(self.model.device)
        if "images" in state:
            path, images = self._buffer_path(), state["images"]
            device = self.model.device
            images = map_images(images.shape, path, self.dtype) if path else torch.empty_like(images, device=device)
            self.buffer = ReplayBuffer(images, self.args.buffer_policy)
            self.buffer.load_state_dict(state)


# Where chains start, in what the energy sees: functions of the sampler and of images (B, C, H, W) of the data, in
# [-1, 1]; no labels, for the first Gibbs draw replaces them


def from_data(sampler: NegativeSampler, x: torch.Tensor) -> torch.Tensor:
    """CD-k (Hinton 2002)."""
    return sampler.encode(x)


def from_noise(sampler: NegativeSampler, x: torch.Tensor) -> torch.Tensor:
    """Short-run chains (Nijkamp et al. 2019)."""
    return sampler.noise(len(x))


def from_noised_data(sampler: NegativeSampler, x: torch.Tensor) -> torch.Tensor:
    """A random way between noise and data."""
    t = torch.rand(len(x), 1, 1, 1, generator=sampler.generator, device=x.device)
    return sampler.clip(torch.lerp(sampler.noise(len(x), "flow"), sampler.encode(x), t))


def from_flow(sampler: NegativeSampler, x: torch.Tensor) -> torch.Tensor:
    """A few steps of gradient flow from noise, as the warm-up samples."""
    model, noise = sampler.model, sampler.noise(len(x), "flow")
    steps = flow_steps(NUM_FLOW_STEPS, min(model.config.flow_time, FLOW_TIME))
    x, _ = run_chain(
        "flow", model.label_distribution, noise, sampler.free_labels(x), num_steps=NUM_FLOW_STEPS,
        step_size=steps, gibbs_every=1, generator=sampler.generator,
    )  # fmt: skip
    return sampler.clip(x)


def from_buffer(sampler: NegativeSampler, x: torch.Tensor) -> torch.Tensor:
    """Persistent chains (Tieleman 2008), a share of them restarted from noise."""
    args, generator = sampler.args, sampler.generator
    start = sampler.buffer.sample(len(x), generator)
    if sampler.model.config.autoencoder is None:  # mirrored or blurred codes are none of mirrored or blurred images
        start = augment(start, args.buffer_flip, args.buffer_blur, generator)
    restart = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < args.restart_probability
    return torch.where(restart, from_noise(sampler, x), start)


def from_broken_data(sampler: NegativeSampler, x: torch.Tensor) -> torch.Tensor:
    """Pictures that are broken in seven ways; one in four is noise, or data on its way from there."""
    kind = torch.rand(len(x), 1, 1, 1, generator=sampler.generator, device=x.device)
    broken = sampler.encode(corrupt(x, sampler.generator))
    rest = torch.where(kind < 0.1, from_noise(sampler, x), from_noised_data(sampler, x))
    return torch.where(kind < 0.25, rest, broken)


def from_mixture(sampler: NegativeSampler, x: torch.Tensor) -> torch.Tensor:
    """Noise, noised data or buffer, one as likely as another."""
    kind = torch.randint(3, (len(x), 1, 1, 1), generator=sampler.generator, device=x.device)
    rest = torch.where(kind == 1, from_noised_data(sampler, x), from_buffer(sampler, x))
    return torch.where(kind == 0, from_noise(sampler, x), rest)


CHAIN_STARTS = {
    "buffer": from_buffer,
    "noise": from_noise,
    "data": from_data,
    "noised_data": from_noised_data,
    "flow": from_flow,
    "broken_data": from_broken_data,
    "mixed": from_mixture,
}


class ReplayBuffer:
    """
    Images, of fixed number, at first noise: samples that wait for their chains to go on, without labels. Pixels are
    held as uint8, codes as bfloat16.

    They are held in 8 bits and dequantised when they are drawn, as the data is: uniform noise of width 1/128. They may
    lie on another device than the chains, or on disk (see [`noise_images`]).

    Args:
        images (`torch.Tensor` of shape (N, C, H, W), uint8): What it holds at first; it is written to.
        policy (`str`, *optional*, defaults to `"fifo"`): `"fifo"` replaces the oldest, `"reservoir"` keeps a uniform
            sample of all that ever came.
    """

    def __init__(self, images: torch.Tensor, policy: str = "fifo"):
        if policy not in POLICIES:
            raise ValueError(f"unknown buffer policy {policy!r}; choose fifo or reservoir")
        self.images, self.policy = images, policy
        self.num_seen = 0
        self.overwritten = None  # where this is a list, `push` appends what it replaces: see `undo`

    def __len__(self):
        return len(self.images)

    def sample(self, num: int, generator: torch.Generator | None = None) -> torch.Tensor:
        """Random images (num, C, H, W) in [-1, 1], on the device of the generator."""
        device = self.images.device if generator is None else generator.device
        rows = torch.randint(len(self), (num,), generator=generator, device=device).to(self.images.device)
        images = self.images[rows].to(device)
        return dequantise(images, generator) if images.dtype == torch.uint8 else images.float()

    def push(self, x: torch.Tensor, generator: torch.Generator | None = None) -> None:
        """Store images (B, C, H, W) in [-1, 1]."""
        order = torch.arange(self.num_seen, self.num_seen + len(x), device=self.images.device)
        rows = order % len(self)
        if self.policy == "reservoir" and self.num_seen + len(x) > len(self):  # algorithm R (Vitter 1985)
            device = order.device if generator is None else generator.device
            chance = torch.rand(len(x), generator=generator, device=device, dtype=torch.float64).to(order.device)
            rows = torch.where(order < len(self), order, (chance * (order + 1)).long())
        # the last of each row alone: two writes to one row at once have no order on a GPU
        by_row = rows.argsort(stable=True)
        last = by_row[rows[by_row].diff(append=rows.new_tensor([-1])) != 0]
        last = last[rows[last] < len(self)]
        images = quantise(x) if self.images.dtype == torch.uint8 else x.to(self.images.dtype)
        rows, images = rows[last], images.to(rows.device)[last]
        if self.overwritten is not None:
            self.overwritten.append((rows, self.images[rows], self.num_seen))
        self.images[rows] = images
        self.num_seen += len(x)

    def undo(self, overwritten: list[tuple]) -> None:
        """Put back what `push` has replaced since `overwritten` was set."""
        for rows, images, self.num_seen in reversed(overwritten):
            self.images[rows] = images

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"images": self.images, "num_seen": torch.tensor(self.num_seen)}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.images.copy_(state["images"])
        self.num_seen = int(state["num_seen"])


def map_images(shape: tuple[int, ...], path: str, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Images (N, C, H, W) that are the bytes of a file, which is made where there is none."""
    return torch.from_file(path, shared=True, size=math.prod(shape), dtype=dtype).view(shape)


def noise_images(
    shape: tuple[int, ...], generator: torch.Generator, path: str | None = None, dtype: torch.dtype = torch.uint8
) -> torch.Tensor:
    """Random uint8 images (N, C, H, W) or normal codes, in memory, or on the CPU as a map of the file `path`."""
    device = generator.device
    images = torch.empty(shape, dtype=dtype, device=device) if path is None else map_images(shape, path, dtype)
    for part in images.split(1024):  # the draws of all pixels at once would need the memory that a map saves
        if dtype == torch.uint8:
            part.copy_(torch.randint(256, part.shape, generator=generator, dtype=dtype, device=device))
        else:
            part.copy_(torch.randn(part.shape, generator=generator, device=device))
    return images

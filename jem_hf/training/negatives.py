"""Negative samples of contrastive divergence: where their chains start, and how far they go."""

import contextlib
import os
from collections.abc import Iterator

import torch
from transformers import TrainingArguments

from ..models.modeling_jem import JemModel
from ..models.sampling_jem import flow_steps, initial_noise, run_chain
from .augmentation import augment
from .buffer import ReplayBuffer, map_images, noise_images

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
        self.buffer = None
        self.motion = torch.zeros(())  # mean absolute way of a pixel along the last chains

    def sample(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Run as many chains as there are images `x` (B, C, H, W) of the data, in [-1, 1].

        Returns:
            Images (B, C, H, W) and labels (B, K) at their ends, and 100 images that the buffer held before. Images
            keep the graph of their last step where a term of the loss needs it.
        """
        args, chain, model = self.args, self.args.chain(), self.model
        if self.buffer is None:
            self.buffer = self._initial_buffer(x)
        through_last_step = bool(args.kl_weight or args.entropy_weight)
        settings = dict(label_distribution=model.label_distribution, generator=self.generator)
        num_steps = chain["num_steps"] - 1 if through_last_step else chain["num_steps"]
        with frozen(model):
            start = self.start(x)
            x, labels = run_chain(
                x=start, condition=self.free_labels(x), **settings, **chain | {"num_steps": num_steps}
            )
        if through_last_step:
            last = chain | {"num_steps": 1, "gibbs_every": 0}
            x, _ = run_chain(x=x, condition=labels, keep_graph=True, **settings, **last)
        self.motion = (x.detach() - start).abs().mean()
        others = self.buffer.sample(NUM_NEIGHBOURS, self.generator)
        self.buffer.push(x.detach(), self.generator)
        return x, labels, others

    def start(self, x: torch.Tensor) -> torch.Tensor:
        """Where the chains start by `chain_start`, (B, C, H, W); no labels, for the first Gibbs draw replaces them."""
        return CHAIN_STARTS[self.args.chain_start](self, x)

    def free_labels(self, x: torch.Tensor) -> torch.Tensor:
        """Labels (B, K) of which none is given."""
        return torch.full((len(x), len(self.model.config.attributes)), -1, device=x.device)

    def _initial_buffer(self, x: torch.Tensor) -> ReplayBuffer:
        shape = (self.args.buffer_size, *x.shape[1:])
        return ReplayBuffer(noise_images(shape, self.generator, path=self._buffer_path()), self.args.buffer_policy)

    def _buffer_path(self) -> str | None:
        if not self.args.buffer_on_disk:
            return None
        os.makedirs(self.args.output_dir, exist_ok=True)
        return os.path.join(self.args.output_dir, f"replay_buffer_{self.args.process_index}.uint8")

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The buffer; empty before the first chain."""
        return {} if self.buffer is None else self.buffer.state_dict()

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.buffer = None
        if state:
            path, shape = self._buffer_path(), state["images"].shape
            in_memory = path is None
            images = (
                torch.empty_like(state["images"], device=self.model.device) if in_memory else map_images(shape, path)
            )
            self.buffer = ReplayBuffer(images, self.args.buffer_policy)
            self.buffer.load_state_dict(state)


# Where chains start: functions of the sampler and of images (B, C, H, W) of the data, in [-1, 1]


def from_data(sampler: NegativeSampler, x: torch.Tensor) -> torch.Tensor:
    """CD-k (Hinton 2002)."""
    return x


def from_noise(sampler: NegativeSampler, x: torch.Tensor) -> torch.Tensor:
    """Short-run chains (Nijkamp et al. 2019)."""
    return initial_noise("langevin", x.shape, x.device, sampler.generator)


def from_noised_data(sampler: NegativeSampler, x: torch.Tensor) -> torch.Tensor:
    """A random way between noise and data."""
    t = torch.rand(len(x), 1, 1, 1, generator=sampler.generator, device=x.device)
    return torch.lerp(initial_noise("flow", x.shape, x.device, sampler.generator), x, t).clamp(-1, 1)


def from_flow(sampler: NegativeSampler, x: torch.Tensor) -> torch.Tensor:
    """A few steps of gradient flow from noise, as the warm-up samples."""
    model, generator = sampler.model, sampler.generator
    noise = initial_noise("flow", x.shape, x.device, generator)
    x, _ = run_chain(
        "flow", model.label_distribution, noise, sampler.free_labels(x), num_steps=NUM_FLOW_STEPS,
        step_size=flow_steps(NUM_FLOW_STEPS, model.config.flow_time), gibbs_every=1, generator=generator,
    )  # fmt: skip
    return x.clamp(-1, 1)


def from_buffer(sampler: NegativeSampler, x: torch.Tensor) -> torch.Tensor:
    """Persistent chains (Tieleman 2008), a share of them restarted from noise."""
    args, generator = sampler.args, sampler.generator
    start = sampler.buffer.sample(len(x), generator)
    start = augment(start, args.buffer_flip, args.buffer_blur, generator)
    restart = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < args.restart_probability
    return torch.where(restart, from_noise(sampler, x), start)


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
    "mixed": from_mixture,
}

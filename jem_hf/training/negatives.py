"""Negative samples of contrastive divergence: where their chains start, and how far they go."""

import contextlib
import os

import torch

from ..models.sampling_jem import flow_steps, initial_noise, run_chain
from .augmentation import augment
from .buffer import ReplayBuffer, map_images, noise_images

NUM_FLOW_STEPS = 8


@contextlib.contextmanager
def frozen(model: torch.nn.Module):
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
        model: The [`JemModel`] in training.
        args: [`JemTrainingArguments`], whose `chain_start`, `buffer_*` and `restart_probability` it follows.
        generator (`torch.Generator`): Source of all randomness, on the device of the model.
    """

    def __init__(self, model, args, generator: torch.Generator):
        self.model, self.args, self.generator = model, args, generator
        self.buffer = None
        self.motion = torch.zeros(())  # mean absolute way of a pixel along the last chains

    def draw(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
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
            x, labels = run_chain(x=start, condition=self._free(x), **settings, **chain | {"num_steps": num_steps})
        if through_last_step:
            last = chain | {"num_steps": 1, "gibbs_every": 0}
            x, _ = run_chain(x=x, condition=labels, keep_graph=True, **settings, **last)
        self.motion = (x.detach() - start).abs().mean()
        others, _ = self.buffer.sample(100, self.generator)
        self.buffer.push(x.detach(), labels, self.generator)
        return x, labels, others

    def start(self, x: torch.Tensor) -> torch.Tensor:
        """
        Where the chains start, (B, C, H, W); no labels, for the first Gibbs draw replaces them all.

        By `chain_start`: "noise" (short-run chains: Nijkamp et al. 2019), "data" (CD-k: Hinton 2002), "noised_data" (a
        random way between the two), "flow" (a few steps of gradient flow from noise, as the warm-up samples), "buffer"
        (persistent chains: Tieleman 2008, a share of them restarted), "mixed" (noise, noised data or buffer).
        """
        return getattr(self, f"_from_{self.args.chain_start}")(x)

    def _from_data(self, x):
        return x

    def _from_noise(self, x):
        return initial_noise("langevin", x.shape, x.device, self.generator)

    def _from_noised_data(self, x):
        t = torch.rand(len(x), 1, 1, 1, generator=self.generator, device=x.device)
        return torch.lerp(initial_noise("flow", x.shape, x.device, self.generator), x, t).clamp(-1, 1)

    def _from_flow(self, x):
        noise = initial_noise("flow", x.shape, x.device, self.generator)
        x, _ = run_chain(
            "flow", self.model.label_distribution, noise, self._free(x), num_steps=NUM_FLOW_STEPS,
            step_size=flow_steps(NUM_FLOW_STEPS, self.model.config.flow_time), gibbs_every=1, generator=self.generator,
        )  # fmt: skip
        return x.clamp(-1, 1)

    def _from_buffer(self, x):
        args, generator = self.args, self.generator
        start, _ = self.buffer.sample(len(x), generator)
        start = augment(start, args.buffer_flip, args.buffer_blur, generator)
        restart = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < args.restart_probability
        return torch.where(restart, self._from_noise(x), start)

    def _from_mixed(self, x):
        kind = torch.randint(3, (len(x), 1, 1, 1), generator=self.generator, device=x.device)
        rest = torch.where(kind == 1, self._from_noised_data(x), self._from_buffer(x))
        return torch.where(kind == 0, self._from_noise(x), rest)

    def _free(self, x):
        return torch.full((len(x), len(self.model.config.attributes)), -1, device=x.device)

    def _initial_buffer(self, x):
        shape = (self.args.buffer_size, *x.shape[1:])
        images = noise_images(shape, self.generator, path=self._buffer_path())
        return ReplayBuffer(images, self._free(images), self.args.buffer_policy)

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
            path = self._buffer_path()
            shape, device = state["images"].shape, self.model.device
            images = torch.empty(shape, dtype=torch.uint8, device=device) if path is None else map_images(shape, path)
            labels = torch.empty_like(state["labels"], device=images.device)
            self.buffer = ReplayBuffer(images, labels, self.args.buffer_policy)
            self.buffer.load_state_dict(state)

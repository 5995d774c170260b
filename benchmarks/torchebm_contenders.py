"""torchebm (pip install torchebm), on the network of a `JemModel`: what its users would write."""

import torch
from torch import nn
from torchebm.core import BaseModel
from torchebm.losses import EquilibriumMatchingLoss, PersistentContrastiveDivergence
from torchebm.samplers import LangevinDynamics


class Energy(BaseModel):
    """`-log p~(x)`."""

    def __init__(self, model):
        super().__init__()
        self.network = model

    def forward(self, x):
        return -self.network.label_distribution(x).log_marginal()


class Field(nn.Module):
    """The potentials as what torchebm takes for a vector field: with `energy_type="l2"` their square is the energy."""

    def __init__(self, model):
        super().__init__()
        self.network = model

    def forward(self, x, t):
        return self.network.potentials(x)


def langevin(model, x: torch.Tensor, num_steps: int, **settings):
    """A chain of `num_steps`, as a function without arguments."""
    sampler = LangevinDynamics(Energy(model), clamp=(-1, 1), device=x.device, **settings)
    return lambda: sampler.sample(x=x, n_steps=num_steps)


def contrastive_divergence(model, x: torch.Tensor, num_steps: int, **settings):
    """The loss with persistent chains of `num_steps`, as a function without arguments."""
    energy = Energy(model)
    sampler = LangevinDynamics(energy, clamp=(-1, 1), device=x.device, **settings)
    loss = PersistentContrastiveDivergence(
        energy, sampler, k_steps=num_steps, buffer_size=10_000, init_steps=0, device=x.device
    )
    return lambda: loss(x)[0]


def equilibrium_matching(x: torch.Tensor):
    """The loss, paired by optimal transport, as a function of a model."""
    losses = {}

    def loss(model):
        if model not in losses:
            losses[model] = EquilibriumMatchingLoss(
                Field(model), energy_type="l2", coupling="ot", ct_multiplier=1.0, device=x.device
            )
        return losses[model](x)

    return loss

"""Derivatives of the activation against finite differences and against those of torch."""

import pytest
import torch
import torch.nn.functional as F

from jem_hf.models.backbone_jem import SiLU


@pytest.fixture
def x():
    return torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)


def test_first_and_second_derivatives(x):
    silu = SiLU().train()
    assert torch.equal(silu(x), F.silu(x))
    assert torch.autograd.gradcheck(silu, x) and torch.autograd.gradgradcheck(silu, x)


def test_mixed_derivatives_are_those_of_torch(x):
    """The warm-up's pass: the gradient of a function of the gradient, by the input and by a weight before it."""
    weight = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def derivatives(silu):
        (field,) = torch.autograd.grad(silu(silu(weight * x) * x).sum(), x, create_graph=True)
        return torch.autograd.grad((field - 0.5).square().sum(), (x, weight))

    torch.testing.assert_close(derivatives(SiLU().train()), derivatives(F.silu))


def test_third_derivative_is_that_of_torch(x):
    def third(silu):
        y = silu(x).sum()
        for _ in range(3):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y

    torch.testing.assert_close(third(SiLU().train()), third(F.silu))

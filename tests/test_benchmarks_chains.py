"""The benchmark of long chains at tiny size: that they are Langevin's on log p(x), looked at on the way."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("chains")
    sys.path.remove(str(FOLDER))
    del sys.modules["chains"]


def test_chains_ascend_log_p_and_are_looked_at_on_the_way(script, model):
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    start, one, three = script.long_chains(model, images, [0, 1, 3], batch_size=2, step_size=0.5, noise_scale=0.0)
    assert torch.equal(start, images)
    x = images
    for number in range(3):
        x = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(model.log_marginal(x).sum(), x)
        x = (x + 0.5 * gradient).clamp(-1, 1).detach()
        if number == 0:
            assert torch.allclose(one, x, atol=1e-6)
    assert torch.allclose(three, x, atol=1e-6)


def test_noise_is_of_its_scale(script, model):
    images = torch.zeros(4, 3, 8, 8)
    settings = dict(step_size=0.0, noise_scale=0.1, generator=torch.Generator().manual_seed(0))
    (end,) = script.long_chains(model, images, [4], **settings)
    assert end.std().item() == pytest.approx(0.2, rel=0.1)  # four steps of variance .01

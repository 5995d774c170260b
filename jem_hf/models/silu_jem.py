"""SiLU whose second derivative, which the warm-up takes at every layer, is six passes over the activations."""

import torch
import torch.nn.functional as F
from torch import nn


class _FirstDerivative(torch.autograd.Function):
    """`grad * silu'(x)`. With s = sigmoid(x), `silu''(x) = s (1 - s) (2 + x - 2 x s)`."""

    @staticmethod
    def forward(ctx, grad, x):
        ctx.save_for_backward(grad, x)
        return torch.ops.aten.silu_backward(grad, x)

    @staticmethod
    def backward(ctx, outer):
        grad, x = ctx.saved_tensors
        s = x.sigmoid()
        factor = torch.addcmul(x, x, s, value=-2)
        if torch.is_grad_enabled():  # for derivatives of a higher order
            factor = (factor + 2) * grad * outer
        else:
            factor.add_(2).mul_(grad).mul_(outer)
        return torch.ops.aten.silu_backward(outer, x), torch.ops.aten.sigmoid_backward(factor, s)


class _SiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    def backward(ctx, grad):
        return _FirstDerivative.apply(grad, *ctx.saved_tensors)


class SiLU(nn.Module):
    """`torch.nn.SiLU`, the same in values and derivatives of all orders; in training its second one costs less."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _SiLU.apply(x) if self.training else F.silu(x)

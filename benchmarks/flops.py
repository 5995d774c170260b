"""How much a computation computes, and how much of it the machine does in a second."""

import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class FlopCounter(TorchDispatchMode):
    """Floating-point operations of matrix products and convolutions; unlike torch's own, in second order too."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def matmul_rate(size: int, dtype: torch.dtype = torch.bfloat16, num_products: int = 20) -> float:
    """Floating-point operations a second of a product of two square matrices, on the GPU where there is one."""
    a, b = torch.randn(2, size, size, device="cuda" if torch.cuda.is_available() else "cpu").to(dtype)
    a @ b  # the first one does not count
    start = synchronised_time()
    for _ in range(num_products):
        a @ b
    return 2 * size**3 * num_products / (synchronised_time() - start)


def synchronised_time() -> float:
    """Seconds, when all that was asked of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()

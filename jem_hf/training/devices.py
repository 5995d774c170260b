"""What this process runs on: its device's number formats, and the processes beside it that torchrun started."""

import torch
from accelerate import PartialState
from accelerate.utils import reduce


def has_native_bfloat16(device: str | torch.device = "cpu") -> bool:
    """Whether bfloat16 is computed by the hardware; emulated on a CPU it is far slower than float32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def join_processes() -> PartialState:
    """This process among the others; the only one where torchrun did not start it."""
    return PartialState(cpu=not torch.cuda.is_available())


def all_agree(condition: bool) -> bool:
    """Whether a condition holds in every process."""
    state = join_processes()
    return int(reduce(torch.tensor(int(condition), device=state.device), "sum")) == state.num_processes

"""
What this process runs on: its device's number formats, and the processes beside it that torchrun started.

`accelerate` is imported inside functions: a Space has none.
"""

from typing import Any

import torch


def has_native_bfloat16(device: str | torch.device = "cpu") -> bool:
    """Whether bfloat16 is computed by the hardware; emulated on a CPU it is far slower than float32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()


def join_processes() -> Any:
    """This process among the others, a `PartialState`; the only one where torchrun did not start it."""
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def all_agree(condition: bool) -> bool:
    """Whether a condition holds in every process."""
    from accelerate.utils import reduce

    state = join_processes()
    return int(reduce(torch.tensor(int(condition), device=state.device), "sum")) == state.num_processes


def copy_from_first_process(module: torch.nn.Module) -> None:
    """Give every process the weights and statistics that a module has in the first."""
    from accelerate.utils import broadcast

    module.load_state_dict({name: broadcast(value.contiguous()) for name, value in module.state_dict().items()})


def of_first_process(value: Any) -> Any:
    """What the first process has, in all of them."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]

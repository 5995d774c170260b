"""Which number format is fast here."""

import torch


def has_native_bfloat16(device: str | torch.device = "cpu") -> bool:
    """Whether bfloat16 is computed by the hardware; emulated on a CPU it is far slower than float32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()

"""A tagger as one file that other programs run: ONNX, or an exported program of PyTorch."""

import json
from copy import deepcopy
from pathlib import Path

import torch
from torch import nn

from ..models.modeling_jem import JemModel

INPUT, OUTPUTS = "pixel_values", ("probabilities", "energy")


class _Tagger(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to probabilities (B, L) of `config.label_names` and energies (B,)."""

    def __init__(self, model: JemModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        distribution = self.model.label_distribution(self.model.encode(pixel_values))
        logits = distribution.marginal_logits()[0]
        return self.model.log_odds(logits).sigmoid(), -distribution.log_marginal()


def export(model: JemModel, path: str | Path) -> Path:
    """
    Write what tags images: `.onnx`, or `.pt2`, which `torch.export.load` reads.

    It takes any number of images at once and gives `probabilities` (B, L), one of each of `labels`, and `energy` (B,).
    Its metadata are texts of JSON: `labels`, `image_size`, and `image_processor`, the fields of
    `preprocessor_config.json`.

    Raises:
        ValueError: another ending, or a head whose sums over labels are estimated by sampling.
        ModuleNotFoundError: onnx and onnxscript are not installed (`pip install 'jem_hf[onnx]'`).
    """
    path = Path(path)
    if path.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{str(path)!r} is no name of an exported model: let it end in .onnx or .pt2")
    config = model.config
    if config.head != "product":
        raise ValueError(
            f"the head {config.head!r} sums over labels by sampling, which cannot be exported: only 'product'"
        )
    metadata = {
        "labels": config.label_names,
        "image_size": config.image_size,
        "image_processor": model.image_processor().to_dict(),
    }
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    tagger = _Tagger(deepcopy(model).eval().cpu())
    example = torch.zeros(2, config.num_channels, config.image_size, config.image_size)
    shapes = {INPUT: {0: torch.export.Dim("batch")}}
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        program = torch.export.export(tagger, (example,), dynamic_shapes=shapes)
    if path.suffix == ".pt2":
        torch.export.save(program, path, extra_files=texts)
        return path
    import onnxscript  # noqa: F401  which the exporter imports deep inside

    exported = torch.onnx.export(program, input_names=[INPUT], output_names=list(OUTPUTS), dynamo=True, verbose=False)
    exported.model.metadata_props.update(texts)
    exported.save(path, external_data=False)
    return path

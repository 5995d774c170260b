"""
What autoencoders cost, and what their codes keep.

    python benchmarks/autoencoders.py                    # times ours beside those of diffusers at 64x64 pixels
    python benchmarks/autoencoders.py --dataset FOLDER   # tells broken images of it by their codes in jem-celeba

A step is forward and backward pass of the absolute error of a batch. Those of diffusers have codes of the same size,
8x8x8, and channels that bring them near the parameters of ours. The last line is of an energy's training step, the
warm-up of `jem-celeba`: how much of it goes to encoding images, which codes that were kept would save.

With a data set a small network learns to tell whole from broken training images by nothing but their codes, kind by
kind. Its AUROC on test images is about what an energy of codes can reach at most, whatever it was trained by.
"""

import argparse
import json
from functools import partial
from statistics import median

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from flops import synchronised_time
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional as F

from jem_hf import JemImageProcessor, JemModel
from jem_hf.evaluation.outliers import outlier_sets
from jem_hf.models.autoencoder_jem import Autoencoder
from jem_hf.models.image_processing_jem import to_pixels
from jem_hf.training.devices import has_native_bfloat16
from jem_hf.training.objectives import equilibrium_matching
from jem_hf.training.splits import load_evaluation_splits


def contenders() -> dict[str, torch.nn.Module]:
    """Autoencoders from 64x64 pixels to codes of 8x8x8, about as large as that of `jem-celeba`."""
    down, up = ["DownEncoderBlock2D"] * 4, ["UpDecoderBlock2D"] * 4
    small = dict(latent_channels=8, norm_num_groups=8, down_block_types=down, up_block_types=up)
    return {
        "ours, width 48": Autoencoder(64, 3, code_size=8, code_channels=8, width=48, depth=2),
        "AutoencoderTiny of diffusers": AutoencoderTiny(latent_channels=8),
        "AutoencoderKL of diffusers": AutoencoderKL(**small, block_out_channels=[32, 64, 96, 96], layers_per_block=1),
    }


def reconstruct(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    if isinstance(network, Autoencoder):
        return network.decode(network.encode(images))
    encoded = network.encode(images)  # not forward, in which AutoencoderTiny rounds codes to bytes, without a gradient
    return network.decode(encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.sample()).sample


def train_step(network: torch.nn.Module, images: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=has_native_bfloat16()):
        loss = (reconstruct(network, images).float() - images).abs().mean()
    loss.backward()
    network.zero_grad()


def match(model: JemModel, codes: torch.Tensor, labels: torch.Tensor) -> None:
    """Loss and gradients of the warm-up's matching."""
    equilibrium_matching(model.label_distribution, codes, labels, torch.Generator().manual_seed(0)).backward()
    model.zero_grad()


def seconds(function, rounds: int) -> float:
    """Median time of a call, one left out."""
    times = []
    for _ in range(rounds + 1):
        start = synchronised_time()
        function()
        times.append(synchronised_time() - start)
    return median(times[1:])


def print_times(batch_size: int, rounds: int) -> None:
    """What a step of each autoencoder takes, and what encoding takes beside the step of an energy."""
    images = torch.rand(batch_size, 3, 64, 64) * 2 - 1
    for name, network in contenders().items():
        network = network.to(memory_format=torch.channels_last).train()
        time = 1e3 * seconds(partial(train_step, network, images), rounds) / batch_size
        size = sum(parameter.numel() for parameter in network.parameters())
        print(json.dumps({name: {"parameters": size, "ms_an_image": round(time, 2)}}), flush=True)
    model = JemModel.from_pretrained("jem-celeba").train()
    labels = torch.randint(2, (batch_size, len(model.config.attributes)))
    with torch.no_grad():
        codes = model.encode(images)
        encoding = seconds(lambda: model.encode(images), rounds)
    matching = seconds(partial(match, model, codes, labels), rounds)
    print(json.dumps({"encoding_ms": round(1e3 * encoding, 1), "matching_ms": round(1e3 * matching, 1)}))


def visible(model: JemModel, splits: dict, kind: str, num: int = 6000, num_epochs: int = 6) -> float:
    """AUROC, on 1,000 test images and as many outliers of a kind, of a network that learnt to tell them by codes."""
    codes, labels = {}, {}
    for split, size in (("train", num), ("test", 1000)):
        pixels = to_pixels(splits[split].sample(size).images)
        broken = torch.cat([outlier_sets(part)[kind](part) for part in pixels.split(250)])
        with torch.no_grad():
            codes[split] = torch.cat([model.encode(part) for part in torch.cat([pixels, broken]).split(250)])
        labels[split] = (torch.arange(2 * len(pixels)) >= len(pixels)).float()
    layers = [nn.Conv2d(codes["train"].shape[1], 64, 3, padding=1), nn.SiLU()]
    for stride in (2, 1):
        layers += [nn.Conv2d(64, 64, 3, padding=1, stride=stride), nn.SiLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 1), nn.Flatten(0))
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    for _ in range(num_epochs):
        for rows in torch.randperm(len(labels["train"])).split(128):
            loss = F.binary_cross_entropy_with_logits(network(codes["train"][rows]), labels["train"][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return float(roc_auc_score(labels["test"], network(codes["test"])))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dataset", help="a folder or Hub id of images that --model knows")
    parser.add_argument("--model", default="jem-celeba")
    parser.add_argument("--kinds", nargs="+", default=["noisy", "blurred", "very_blurred"])
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.dataset is None:
        print_times(args.batch_size, args.rounds)
        return
    model = JemModel.from_pretrained(args.model)
    splits = load_evaluation_splits(args.dataset, JemImageProcessor.from_pretrained(args.model), model.config)
    for kind in args.kinds:
        print(json.dumps({kind: round(visible(model, splits, kind), 3)}), flush=True)


if __name__ == "__main__":
    main()

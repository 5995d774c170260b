"""
What autoencoders cost: `python benchmarks/autoencoders.py` times ours beside those of diffusers at 64x64 pixels.

A step is forward and backward pass of the absolute error of a batch. Those of diffusers have codes of the same size,
8x8x8, and channels that bring them near the parameters of ours. The last line is of an energy's training step, the
warm-up of `jem-celeba`: how much of it goes to encoding images, which codes that were kept would save.
"""

import argparse
import json
from functools import partial
from statistics import median

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from flops import synchronised_time

from jem_hf import JemModel
from jem_hf.models.autoencoder_jem import Autoencoder
from jem_hf.training.devices import has_native_bfloat16
from jem_hf.training.objectives import equilibrium_matching


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


def seconds(function, rounds: int) -> float:
    """Median time of a call, one left out."""
    times = []
    for _ in range(rounds + 1):
        start = synchronised_time()
        function()
        times.append(synchronised_time() - start)
    return median(times[1:])


def match(model: JemModel, codes: torch.Tensor, labels: torch.Tensor) -> None:
    """Loss and gradients of the warm-up's matching."""
    equilibrium_matching(model.label_distribution, codes, labels, torch.Generator().manual_seed(0)).backward()
    model.zero_grad()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    images = torch.rand(args.batch_size, 3, 64, 64) * 2 - 1
    for name, network in contenders().items():
        network = network.to(memory_format=torch.channels_last).train()
        time = seconds(partial(train_step, network, images), args.rounds)
        size = sum(parameter.numel() for parameter in network.parameters())
        print(
            json.dumps({name: {"parameters": size, "ms_an_image": round(1e3 * time / args.batch_size, 2)}}), flush=True
        )
    model = JemModel.from_pretrained("jem-celeba").train()
    labels = torch.randint(2, (args.batch_size, len(model.config.attributes)))
    with torch.no_grad():
        codes = model.encode(images)
        encoding = seconds(lambda: model.encode(images), args.rounds)
    matching = seconds(partial(match, model, codes, labels), args.rounds)
    print(json.dumps({"encoding_ms": round(1e3 * encoding, 1), "matching_ms": round(1e3 * matching, 1)}))


if __name__ == "__main__":
    main()

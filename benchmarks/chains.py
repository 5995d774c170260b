"""
Whether images stay images: long Langevin chains that start at test images, in the eyes of an oracle.

    python benchmarks/chains.py jem-celeba runs/compare/the-warm-up-goes-on-0 --dataset FOLDER --output results

Writes chains.json and, for each model, a picture: a column an image, a row for each number of steps.
"""

import argparse
import json
from pathlib import Path

import torch

from jem_hf import JemImageProcessor, JemModel
from jem_hf.evaluation.evaluate import with_half_of_novel
from jem_hf.evaluation.judges import load_feature_network, load_oracle
from jem_hf.metrics.distances import frechet_distance
from jem_hf.models.image_processing_jem import to_pixels
from jem_hf.models.sampling_jem import run_chain
from jem_hf.plots import image_grid
from jem_hf.training.splits import load_evaluation_splits


@torch.no_grad()
def long_chains(model: JemModel, images: torch.Tensor, stops: list[int], batch_size: int = 64, **settings) -> list:
    """
    Images at each of the `stops`, numbers of steps that rise, along chains of log p(x) that start at `images`.

    Args:
        images (`torch.Tensor` of shape (N, C, H, W)): In [-1, 1].
        settings: `step_size`, `noise_scale` and `generator` of the Langevin sampler.
    """
    ends: list[list[torch.Tensor]] = [[] for _ in stops]
    for batch in images.split(batch_size):
        x, done = model.encode(batch.to(model.device)), 0
        free = torch.full((len(x), len(model.config.attributes)), -1, device=model.device)
        for end, stop in zip(ends, stops):
            if stop > done:
                x, _ = run_chain(
                    "langevin",
                    model.label_distribution,
                    x,
                    free,
                    num_steps=stop - done,
                    bounds=model.bounds,
                    **settings,
                )
            done = stop
            end.append(model.decode(x).clamp(-1, 1).cpu())
    return [torch.cat(end) for end in ends]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--dataset", default="avatars", help="avatars, a dataset id on the Hub, or a folder")
    parser.add_argument("--num-images", type=int, default=128)
    parser.add_argument("--stops", type=int, nargs="+", default=[0, 20, 200, 2000], help="steps after which to look")
    parser.add_argument("--step-size", type=float, default=0.08, help="that of the recipe's contrastive divergence")
    parser.add_argument("--noise-scale", type=float, default=0.02, help="of the same")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    report = {}
    for number, name in enumerate(args.models):
        model = JemModel.from_pretrained(name).to("cuda" if torch.cuda.is_available() else "cpu")
        processor = JemImageProcessor.from_pretrained(args.models[0])
        splits = load_evaluation_splits(args.dataset, processor, model.config)
        test, num_values = splits["test"].sample(args.num_images), model.config.num_values
        oracle = load_oracle(with_half_of_novel(splits["train"], splits["novel"])[0], num_values)
        network = load_feature_network(splits["train"], num_values)
        train_features = network.extract(splits["train"].images)
        settings = dict(
            step_size=args.step_size, noise_scale=args.noise_scale, generator=torch.Generator().manual_seed(0)
        )
        drawn = long_chains(model, to_pixels(test.images), args.stops, **settings)
        given = test.labels >= 0
        report[name] = {
            stop: {
                "agreement": (oracle.predict(images) == test.labels)[given].float().mean().item(),
                "frechet_distance": frechet_distance(network.extract(images), train_features),
            }
            for stop, images in zip(args.stops, drawn)
        }
        shown = [image for images in drawn for image in JemImageProcessor.to_pil(images[:12])]
        image_grid(shown, 12, scale=max(1, 96 // model.config.image_size)).save(args.output / f"chains-{number}.png")
        print(json.dumps({name: report[name]}), flush=True)
    (args.output / "chains.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()

"""Edits real faces, attribute by attribute, and asks an oracle what it sees: `python training/editing.py FOLDER`.

FOLDER is CelebA in the layout of flwrlabs/celeba. Prints a Markdown table, of photographs; the picture is of ten faces
that the model drew itself, for CelebA may not be redistributed.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from jem_hf import JemImageProcessor, JemModel
from jem_hf.evaluation.evaluate import with_half_of_novel
from jem_hf.evaluation.judges import load_oracle
from jem_hf.models.image_processing_jem import to_pixels
from jem_hf.plots import image_grid
from jem_hf.training.splits import load_evaluation_splits

EDITS = ("Smiling", "Young", "Male", "Bangs", "Blond_Hair", "Heavy_Makeup")


def switched(labels: torch.Tensor, attribute: int) -> torch.Tensor:
    """Requests (B, K) for the other value of one binary attribute."""
    request = torch.full_like(labels, -1)
    request[:, attribute] = 1 - labels[:, attribute]
    return request


def edit(model: JemModel, images: torch.Tensor, requests: torch.Tensor, batch_size: int = 50, **settings):
    """Edited images, of images (B, C, H, W) in [-1, 1]."""
    edited = []
    for x, request in zip(images.split(batch_size), requests.split(batch_size)):
        edited.append(model.edit(x, request, generator=torch.Generator().manual_seed(0), **settings)[0].clamp(-1, 1))
    return torch.cat(edited)


def same(predicted: torch.Tensor, before: torch.Tensor, without: int | None = None) -> float:
    """Share of the attributes that an oracle sees as before, one of them left out."""
    kept = torch.arange(before.shape[1]) != (-1 if without is None else without)
    return (predicted == before)[:, kept].float().mean().item()


def difference(images: torch.Tensor, photographs: torch.Tensor) -> float:
    """Root mean square of the pixels' differences, black to white being 1; of images in [-1, 1]."""
    return (images - photographs).square().mean().sqrt().item() / 2


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="CelebA")
    parser.add_argument("--model", default="jem-celeba")
    parser.add_argument("--num-images", type=int, default=200, help="test images for the figures")
    parser.add_argument("--strength", type=float, help="share of noise at the start")
    parser.add_argument("--guidance", type=float, help="weight of the edited attribute")
    parser.add_argument("--hold", type=float, help="weight of all others")
    parser.add_argument("--steps", type=int, help="from pure noise")
    parser.add_argument("--photographs", action="store_true", help="show edits of them, not of drawn faces")
    parser.add_argument("--output", type=Path, default=Path("docs/figures/editing.png"))
    args = parser.parse_args()

    model, processor = JemModel.from_pretrained(args.model), JemImageProcessor.from_pretrained(args.model)
    settings = dict(strength=args.strength, guidance_scale=args.guidance, hold_scale=args.hold)
    settings["num_inference_steps"] = args.steps
    splits = load_evaluation_splits(args.folder, processor, model.config)
    judged, _ = with_half_of_novel(splits["train"], splits["novel"])
    oracle = load_oracle(judged, model.config.num_values)
    test = splits["test"].subset(torch.arange(args.num_images))
    before, photographs = oracle.predict(test.images), to_pixels(test.images)

    unedited = edit(model, photographs, torch.full_like(test.labels, -1), **settings)
    shown = photographs[:10]
    if not args.photographs:
        shown = model.generate(test.labels[:10], generator=torch.Generator().manual_seed(1))[0].clamp(-1, 1)
    rows, seen = {"before": shown}, oracle.predict(shown)
    print("| edit | switched | to yes | to no | others as before | difference |\n|---|---:|---:|---:|---:|---:|")
    kept, changed = same(oracle.predict(unedited), before), difference(unedited, photographs)
    print(f"| none | | | | {kept:.3f} | {changed:.3f} |", flush=True)
    for name in EDITS:
        k = test.attributes.index(name)
        edited = edit(model, photographs, switched(before, k), **settings)
        rows[name.replace("_", " ")] = edit(model, shown, switched(seen, k), **settings)
        predicted = oracle.predict(edited)
        flipped = (predicted != before)[:, k].float()
        numbers = [flipped, flipped[before[:, k] == 0], flipped[before[:, k] == 1]]
        shares = " | ".join(f"{each.mean():.3f}" for each in numbers)
        kept, changed = same(predicted, before, k), difference(edited, photographs)
        print(f"| {name} | {shares} | {kept:.3f} | {changed:.3f} |", flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    images = [image for row in rows.values() for image in JemImageProcessor.to_pil(row)]
    grid = image_grid(images, num_columns=10, row_labels=list(rows))
    grid.resize((2 * grid.width, 2 * grid.height), Image.Resampling.NEAREST).save(args.output)


if __name__ == "__main__":
    main()

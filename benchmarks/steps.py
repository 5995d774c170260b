"""
How many network evaluations a good image needs: ways to descend, by oracle agreement and distance to real images.

    python benchmarks/steps.py --output results                 # first an oracle is trained, once; then half an hour
    python benchmarks/steps.py jem-celeba --dataset FOLDER --ways plain "rising, momentum .5" --steps 12 24

Writes steps.json, steps.png and a grid of images for each way, and prints a table and the cheapest way whose agreement
is within one standard error of the best one.
"""

import argparse
import json
import math
from itertools import product
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from jem_hf import JemImageProcessor, JemModel
from jem_hf.evaluation.evaluate import with_half_of_novel
from jem_hf.evaluation.judges import load_feature_network, load_oracle
from jem_hf.evaluation.requests import held_out_combinations, requests_by_kind
from jem_hf.metrics.distances import frechet_distance, kernel_distance
from jem_hf.models.chains_jem import linear, normal_like
from jem_hf.models.sampling_jem import FLOW_TIME
from jem_hf.plots import image_grid
from jem_hf.training.splits import load_evaluation_splits

NUM_STEPS = (6, 8, 12, 16, 24, 32)
BATCH_SIZE = 64
KINDS = {"full": "every attribute given", "seen": "pairs and triples", "novel": "pairs and triples held out"}


def cosine(start: float, end: float):
    """From `start` to `end` along half a cosine, flat at both ends."""
    return lambda progress: end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def momentum(share: float):
    """Nesterov's steps, smaller by what momentum adds to them."""
    return lambda h: {"step_size": (1 - share) * h, "momentum": share}


def farther(times: float, temperature: float):
    """Rising steps that are longer, with noise that falls to nothing."""
    return lambda h: {"step_size": linear(0.5 * times * h, 1.5 * times * h), "temperature": linear(temperature, 0.0)}


FARTHER = {"half again": 1.5, "twice": 2, "thrice": 3}
COOLED = {
    f"{name} as far, from {heat}": farther(times, heat)
    for name, times in FARTHER.items()
    for heat in (0, 0.05, 0.1, 0.2, 0.3)
}
ANCESTRAL = {
    f"ancestral, eta {eta}, reach {reach}": lambda h, eta=eta, reach=reach: {"eta": eta, "reach": reach}
    for eta in (0, 0.5, 1, 2, 4, math.inf)
    for reach in (1, 1.2, 1.35, 1.5)
}
WAYS = {  # name: arguments of the gradient flow for a mean step of size h
    "plain": lambda h: {"step_size": h},
    "momentum .5": momentum(0.5),
    "momentum .8": momentum(0.8),
    "falling steps": lambda h: {"step_size": linear(2 * h, 0)},
    "falling steps, cosine": lambda h: {"step_size": cosine(2 * h, 0)},
    "rising steps": lambda h: {"step_size": linear(0.5 * h, 1.5 * h)},
    "rising steeply": lambda h: {"step_size": linear(0.2 * h, 1.8 * h)},
    "rising, momentum .5": lambda h: {"step_size": linear(0.25 * h, 0.75 * h), "momentum": 0.5},
    "a quarter farther": lambda h: {"step_size": 1.25 * h},
    "stop at gradient .3": lambda h: {"step_size": h, "tolerance": 0.3},
    "stop at gradient .1": lambda h: {"step_size": h, "tolerance": 0.1},
    "plain, bfloat16": lambda h: {"step_size": h},
}
ALL_WAYS = WAYS | COOLED | ANCESTRAL


def add_noise_to_codes(model: JemModel, scale: float, seed: int = 9) -> None:
    """Let the model decode with normal noise of this scale, which its decoder takes for texture."""
    decode, generator = model.decode, torch.Generator(model.device).manual_seed(seed)
    model.decode = lambda codes: decode(codes + scale * normal_like(codes, generator))


def draw(model: JemModel, requests: torch.Tensor, way: str, num_steps: int, seed: int = 0):
    """One image a request, from the same noise for every way, and the network evaluations an image took."""
    evaluations = 0

    def count(module, inputs, output):
        nonlocal evaluations
        evaluations += len(output)

    sampler, own = ("ancestral", {}) if way in ANCESTRAL else ("flow", {"temperature": 0.0})
    arguments = own | ALL_WAYS[way](FLOW_TIME / num_steps)
    settings = dict(num_inference_steps=num_steps, sampler=sampler, sampler_kwargs=arguments)
    handle = model.backbone.register_forward_hook(count)
    try:
        with torch.autocast(model.device.type, torch.bfloat16, enabled="bfloat16" in way):
            drawn = []
            for number, rows in enumerate(requests.split(BATCH_SIZE)):  # ways differ in how much noise they draw
                generator = torch.Generator(model.device).manual_seed(seed + number)
                drawn.append(model.generate(rows, generator=generator, **settings)[0])
    finally:
        handle.remove()
    return torch.cat(drawn).clamp(-1, 1), evaluations / len(requests)


def agreement(oracle, images: torch.Tensor, requests: torch.Tensor) -> tuple[float, float]:
    """Mean share of the requested attributes that the oracle finds, and its standard error over images."""
    asked = requests >= 0
    shares = ((oracle.predict(images) == requests) & asked).sum(1) / asked.sum(1)
    return shares.mean().item(), (shares.std() / len(shares) ** 0.5).item()


def cheapest(results: list[dict]) -> dict:
    """Of the results within one standard error of the best mean over kinds, the one of the fewest evaluations."""

    def mean(result, field):
        return sum(result[kind][field] for kind in KINDS) / len(KINDS)

    best = max(results, key=lambda result: mean(result, "agreement"))
    enough = mean(best, "agreement") - mean(best, "standard_error")
    good = [result for result in results if mean(result, "agreement") >= enough]
    return min(good, key=lambda result: mean(result, "evaluations"))


def row(result: dict) -> str:
    """One of the Markdown table."""
    cells = [
        f"{each['agreement']:.4f} ± {each['standard_error']:.4f}, "
        f"{each['kernel_distance']:.3f}, {each['frechet_distance']:.1f}"
        for each in (result[kind] for kind in KINDS)
    ]
    evaluations = sum(result[kind]["evaluations"] for kind in KINDS) / len(KINDS)
    return "| " + " | ".join([result["way"], str(result["num_steps"]), f"{evaluations:.0f}", *cells]) + " |"


def plot(results: list[dict], path: Path) -> None:
    """Agreement and distance over evaluations, a line for each way, a column for each kind of request."""
    figure = Figure(figsize=(5 * len(KINDS) + 2, 8), layout="constrained")
    panels = figure.subplots(2, len(KINDS))
    fields = {"agreement": "oracle agreement", "kernel_distance": "kernel distance to real images"}
    for axes, (field, kind) in zip(panels.flat, product(fields, KINDS)):
        axes.set_prop_cycle(color=colormaps["tab20"].colors[::2] + colormaps["tab20"].colors[1::2])
        for way in {result["way"]: None for result in results}:
            points = [result[kind] for result in results if result["way"] == way]
            axes.errorbar(
                [point["evaluations"] for point in points],
                [point[field] for point in points],
                [point["standard_error"] for point in points] if field == "agreement" else None,
                marker="o",
                markersize=3,
                linewidth=1,
                label=way,
            )
        axes.set(title=KINDS[kind], xscale="log", xlabel="network evaluations", ylabel=fields[field])
        if field == "kernel_distance":
            axes.set_ylim(bottom=0)
        steps = sorted({result["num_steps"] for result in results})
        axes.set_xticks(steps, steps)
        axes.minorticks_off()
        axes.grid(linewidth=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="jem-avatars")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder")
    parser.add_argument("--num-images", type=int, default=512, help="of each kind of request")
    parser.add_argument("--dataset", default="avatars", help="avatars, a dataset id on the Hub, or a folder")
    parser.add_argument("--num-train", type=int, default=20_000, help="avatars that the oracle learns from")
    parser.add_argument("--num-epochs", type=int, default=6, help="of the oracle")
    parser.add_argument("--guidance", type=float, help="if not the model's own")
    parser.add_argument("--code-noise", type=float, default=0.0, help="added to codes before they are decoded")
    parser.add_argument("--ways", nargs="+", choices=ALL_WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, nargs="+", default=NUM_STEPS)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = JemModel.from_pretrained(args.model).to(device)
    if args.guidance is not None:
        model.config.guidance_scale = args.guidance
    if args.code_noise:
        add_noise_to_codes(model, args.code_noise)
    processor = JemImageProcessor.from_pretrained(args.model)
    fields = {"num_train": str(args.num_train)} if args.dataset == "avatars" else {}
    splits = load_evaluation_splits(args.dataset, processor, model.config, fields)
    train, test = splits["train"].labels, splits["test"].labels
    judged, rest = with_half_of_novel(splits["train"], splits["novel"])
    oracle = load_oracle(judged, model.config.num_values, num_epochs=args.num_epochs).to(device)
    held_out = held_out_combinations(model.config, train, splits["novel"].labels)
    network = load_feature_network(splits["train"], model.config.num_values)
    train_features = network.extract(splits["train"].images)
    requests = {
        kind: rows for kind, (rows, _) in requests_by_kind(test, rest.labels, held_out, args.num_images).items()
    }
    results = []
    print(f"Agreement, kernel and Fréchet distance\n\n| way | steps | evaluations | {' | '.join(KINDS.values())} |")
    print("|---|---:|---:|" + "---|" * len(KINDS))
    for way, num_steps in product(args.ways, args.steps):
        result = {"way": way, "num_steps": num_steps}
        for kind in KINDS:
            images, evaluations = draw(model, requests[kind].to(device), way, num_steps)
            if kind == "full":
                image_grid(JemImageProcessor.to_pil(images[:64])).save(args.output / f"{way}, {num_steps} steps.png")
            mean, error = agreement(oracle, images, requests[kind])
            result[kind] = {"evaluations": evaluations, "agreement": mean, "standard_error": error}
            features = network.extract(images)
            for distance in (kernel_distance, frechet_distance):
                result[kind][distance.__name__] = distance(features, train_features)
        results.append(result)
        print(row(result), flush=True)
    (args.output / "steps.json").write_text(json.dumps(results, indent=1))
    plot(results, args.output / "steps.png")
    chosen = cheapest(results)
    print(f"\ncheapest within one standard error of the best: {chosen['way']}, {chosen['num_steps']} steps")


if __name__ == "__main__":
    main()

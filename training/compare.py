"""Warm-up against contrastive divergence at equal wall time: `python training/compare.py DATASET --minutes 5`.

Every row trains the network of the recipe celeba-32 for the same time, its steps being timed first, and is judged as
`jem-hf evaluate` does. With --density it is the energy of jem-celeba, in the codes of that model: one warm-up of
--warmup minutes, from which the rows of all seeds go on for --minutes; rows from scratch have both times. With
--networks it is the warm-up of jem-celeba by other networks, in the same codes. Prints Markdown tables and keeps runs
and results in --output, where a finished row stays.
"""

import argparse
import json
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev

import torch
from transformers import TrainerCallback

from jem_hf.data.tensors import AttributeTensors, random_rows
from jem_hf.evaluation.evaluate import evaluate
from jem_hf.evaluation.outliers import outlier_detection
from jem_hf.evaluation.report import write_report
from jem_hf.models.image_processing_jem import JemImageProcessor, to_pixels
from jem_hf.models.modeling_jem import JemModel
from jem_hf.training.objectives import equilibrium_matching
from jem_hf.training.recipes import load_recipe, load_splits, make_trainer

paper = load_recipe("paper-celeba")
PAPER = {name: value for name, value in (paper.model | paper.training).items() if not name.startswith("backbone")}
STARTS = {
    "buffer": {"chain_start": "buffer"},
    "noise": {"chain_start": "noise"},
    "data": {"chain_start": "noised_data"},
}


def then_cd(start: str, chain_steps: int) -> dict:
    """The warm-up, and for the last two fifths of the time joint contrastive divergence beside it."""
    return {
        "objective": "joint_cd",
        "warmup_weight": 1.0,
        "cd_weight": 0.02,
        "energy_penalty": 1e-4,
        "chain_steps": chain_steps,
        "chain_step_size": 1.6 / chain_steps,
        "chain_noise": 0.01,
        "gibbs_every": 1,
        **STARTS[start],
    }


ROWS = {
    "warm-up": {},
    "CD as in the paper": PAPER,
    "warm-up, CD from noise, 20 steps": then_cd("noise", 20),
    "warm-up, CD from data, 20 steps": then_cd("data", 20),
    **{f"warm-up, CD from buffer, {n} steps": then_cd("buffer", n) for n in (5, 10, 20, 40)},
}
codes = load_recipe("jem-celeba").training
BROKEN = {name: value for name, value in codes.items() if name.startswith(("chain", "cd_", "gibbs", "buffer"))} | {
    "objective": "joint_cd",
    "chain_free_steps": 0,
    "warmup_weight": 1.0,
}
SQUARES = {"cd_loss": "difference", "energy_penalty": 1e-4}
FROM_BUFFER = {"chain_start": "buffer", "buffer_size": 10_000, "buffer_blur": False}
ADAM = {"muon": False, "learning_rate": 1e-4}
LANGEVIN = {"sampler": "langevin", "num_inference_steps": 100, "step_size": 0.08, "noise_scale": 0.02}
ALONE = (
    BROKEN | ADAM | LANGEVIN | {"warmup_weight": 0.0, "cd_weight": 1.0, "chain_random_steps": False, "chain_steps": 20}
)
DENSITY_ROWS = {  # what goes on from the warm-up
    "the warm-up goes on": {},
    "logistic, broken pictures": BROKEN,
    "logistic, broken pictures, four times the weight": BROKEN | {"cd_weight": 4 * codes["cd_weight"]},
    "squares, broken pictures": BROKEN | SQUARES,
    "logistic, buffer": BROKEN | FROM_BUFFER,
    "logistic, noise, 20 steps": BROKEN | {"chain_start": "noise", "chain_steps": 20, "chain_random_steps": False},
}
SCRATCH_ROWS = {  # what does without
    "from scratch, terms and buffer of the paper": ALONE
    | FROM_BUFFER
    | {"cd_loss": "difference", "chain_steps": 40, "gibbs_every": 2, "kl_weight": 1.0, "entropy_weight": 0.3},
    "from scratch, logistic, broken pictures": ALONE,
    "from scratch, short-run": ALONE | SQUARES | {"chain_start": "noise", "num_inference_steps": 20},
}
VIT = {"patch_size": 1, "num_heads": 3}  # every place of a code is a token
NETWORK_ROWS = {
    **{
        f"width {width}, depth {depth}": {"backbone_kwargs": {"width": width, "hidden_size": 512, "depth": depth}}
        for width, depth in ((128, 2), (96, 2), (160, 2), (128, 1), (128, 4))
    },
    "ViT, width 192, 4 blocks": {
        "backbone": "vit_tiny_patch16_224",
        "backbone_kwargs": VIT | {"embed_dim": 192, "depth": 4},
        "learning_rate": 1e-3,
    },
}
JUDGED = {
    "accuracy": lambda r: r["prediction"]["accuracy"],
    "AP": lambda r: r["prediction"]["ap"],
    "NLL": lambda r: r["prediction"]["nll"],
    "ECE": lambda r: r["prediction"]["ece"],
    "agreement, every attribute": lambda r: r["generation"]["full"]["agreement"],
    "pairs and triples all right": lambda r: r["generation"]["seen"]["all_right"],
    "held-out all right": lambda r: r["generation"]["novel"]["all_right"],
    "Fréchet distance": lambda r: r["generation"]["full"]["frechet_distance"]["samples"],
    "kernel distance": lambda r: r["generation"]["full"]["kernel_distance"]["samples"],
}
BROKEN_SETS = (
    "one_colour",
    "noisy",
    "blurred",
    "very_blurred",
    "shuffled",
)  # some kinds of which negatives start from
OTHER_SETS = ("upside_down", "inverted", "avatars", "others")


def aurocs(key: str) -> dict:
    """Columns of how well a score finds outliers."""
    sets = BROKEN_SETS + OTHER_SETS
    return {name.replace("_", " "): lambda r, name=name: r["energy"].get(name, {}).get(key) for name in sets}


@dataclass
class Contest:
    """What all rows of a table share: recipe and data."""

    recipe: str
    splits: dict
    values: dict
    settings: dict  # over those of the recipe
    others: torch.Tensor | None = None  # images (N, C, H, W) of something else

    def trainer(self, settings: dict, output_dir: Path, **training):
        recipe = load_recipe(self.recipe)
        for name, value in {**self.settings, **settings, **training, "output_dir": str(output_dir)}.items():
            recipe.override(name, value)
        return make_trainer(recipe, self.splits, self.values)


CD_SHARE = 0.4
QUIET = {"eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True, "sample_grid": 0}


class StepTimes(TrainerCallback):
    """When each training step ended."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def seconds_a_step(contest: Contest, settings: dict, output_dir: Path, num_steps: int = 12) -> float:
    """Median time of a training step, the first half left out."""
    times = StepTimes()
    trainer = contest.trainer(settings, output_dir, max_steps=num_steps, chain_free_steps=0, **QUIET)
    trainer.add_callback(times)
    trainer.train()
    return median(end - start for start, end in pairwise(times.ends[num_steps // 2 - 1 :]))


def train(contest: Contest, settings: dict, output_dir: Path, minutes: float, seed: int = 0):
    """The trainer of one row after as many steps as fit into the time, and the minutes that it took."""
    seconds, steps = 60 * minutes, {}
    if settings.get("warmup_weight") and "from_pretrained" not in settings:
        steps["chain_free_steps"] = int((1 - CD_SHARE) * seconds / seconds_a_step(contest, {}, output_dir))
        seconds *= CD_SHARE
    num_steps = int(seconds / seconds_a_step(contest, settings, output_dir))
    steps["max_steps"] = steps.get("chain_free_steps", 0) + num_steps
    trainer = contest.trainer(settings, output_dir, max_minutes=1.1 * minutes, seed=seed, **steps, **QUIET)
    start = time.perf_counter()
    trainer.train()
    spent = (time.perf_counter() - start) / 60
    trainer.save_model()
    return trainer, spent


def run(contest: Contest, settings: dict, output_dir: Path, minutes: float, seed: int = 0) -> dict:
    """Train one row and evaluate it."""
    trainer, spent = train(contest, settings, output_dir, minutes, seed)
    model = trainer.ema.module.eval()
    if model.outliers is not None:
        model.fit_outlier_score(contest.splits["train"].sample(2000).images)
    matching = matching_of(model, contest.splits["validation"].sample(1000))
    report, pictures = evaluate(model, contest.splits, num_images=192, num_cas=0, baselines=False)
    if contest.others is not None:
        images = contest.splits["test"].images
        report["energy"] |= outlier_detection(model, images, outliers={"others": contest.others})
    write_report(report, pictures, output_dir, model.config)
    return {"minutes": spent, "steps": trainer.state.global_step, "matching": matching, **report}


def matching_of(model: JemModel, images: AttributeTensors) -> float:
    """The loss of the warm-up on images that were not trained on, with the same noise for every model."""
    generator, losses = torch.Generator().manual_seed(0), []
    for pixels, labels in zip(images.images.split(250), images.labels.split(250)):
        codes = model.encode(to_pixels(pixels)).detach()
        losses.append(equilibrium_matching(model.label_distribution, codes, labels, generator, 0.8, False))
    return mean(loss.item() for loss in losses)


def contest_of(recipe_name: str, args, settings: dict) -> Contest:
    recipe = load_recipe(recipe_name, {"name_or_path": args.dataset})
    splits, values = load_splits(recipe.dataset, JemImageProcessor(**recipe.image_processor))
    return Contest(recipe_name, splits, values, settings)


def contest_of_pixels(args) -> tuple[Contest, dict, dict]:
    return contest_of("celeba-32", args, {}), ROWS, dict.fromkeys(ROWS, args.minutes)


def contest_of_networks(args) -> tuple[Contest, dict, dict]:
    """The warm-up of jem-celeba in the codes of that model, by several networks."""
    contest = contest_of("jem-celeba", args, {"autoencoder": args.codes, "objective": "warmup"})
    return contest, NETWORK_ROWS, dict.fromkeys(NETWORK_ROWS, args.minutes)


def contest_of_densities(args) -> tuple[Contest, dict, dict]:
    """The energy of jem-celeba after a warm-up, the rows that go on from it, and the minutes of each."""
    contest = contest_of("jem-celeba", args, {"autoencoder": args.codes, "optimal_transport": False})
    if args.others:
        processor = JemImageProcessor(**load_recipe("jem-celeba").image_processor)
        images = load_splits({"name_or_path": args.others}, processor)[0]["test"].images
        contest.others = to_pixels(images[random_rows(len(images), 300)])
    first = args.output / "warm-up"
    if not (first / "model.safetensors").exists():
        train(contest, {"objective": "warmup"}, first, args.warmup)
    going_on = {"from_pretrained": str(first), "learning_rate": 5e-4, "objective": "warmup"}
    rows = {name: going_on | settings for name, settings in DENSITY_ROWS.items()} | SCRATCH_ROWS
    return contest, rows, {name: args.minutes + args.warmup * (name in SCRATCH_ROWS) for name in rows}


def cell(values: list) -> str:
    """Mean and spread over seeds; "-" where a row has no such number."""
    if None in values:
        return "-"
    return f"{mean(values):.4g}" + (f" ± {stdev(values):.2g}" if len(values) > 1 else "")


def print_table(title: str, columns: dict, results: dict[str, list[dict]]) -> None:
    """Markdown: a row for each training, a column for each figure."""
    print(f"| {title} | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for name, each in results.items():
        print(f"| {name} | " + " | ".join(cell([column(r) for r in each]) for column in columns.values()) + " |")
    print()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="CelebA: a folder or Hub id")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--density", action="store_true", help="energies of codes, and what they are worth as densities")
    what.add_argument("--networks", action="store_true", help="energies of codes by several networks")
    parser.add_argument("--codes", default="jem-celeba", help="--density, --networks: the model whose codes these are")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of a row")
    parser.add_argument("--warmup", type=float, default=10.0, help="--density: minutes of the warm-up before the rows")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", nargs="+", help="of the table; all if not given")
    parser.add_argument("--others", help="--density: a folder of something else, the set 'others'")
    parser.add_argument("--output", type=Path, default=Path("runs/compare"))
    args = parser.parse_args()

    of_codes = contest_of_networks if args.networks else contest_of_densities if args.density else None
    contest, rows, minutes = (of_codes or contest_of_pixels)(args)
    results: dict[str, list[dict]] = {}
    for name in args.rows or rows:
        for seed in range(args.seeds):
            folder = args.output / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            file = folder / "result.json"
            if not file.exists():
                file.write_text(json.dumps(run(contest, rows[name], folder, minutes[name], seed)))
            results.setdefault(name, []).append(json.loads(file.read_text()))
    spent = {name: lambda r, name=name: r[name] for name in ("minutes", "steps", "matching")}
    print_table("training", spent | JUDGED, results)
    print_table("AUROC by log p(x)", aurocs("log_p_auroc"), results)
    if of_codes:
        print_table("AUROC by the outlier score", aurocs("auroc"), results)


if __name__ == "__main__":
    main()

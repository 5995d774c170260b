"""Warm-up against contrastive divergence at equal wall time: `python training/compare.py DATASET --minutes 5`.

Every row trains the network of the recipe celeba-32 for the same time, its steps being timed first, and is judged as
`jem-hf evaluate` does. Prints a Markdown table and keeps runs and results in --output, where a finished row stays.
"""

import argparse
import json
import time
from itertools import pairwise
from pathlib import Path
from statistics import median

from transformers import TrainerCallback

from jem_hf.evaluation.evaluate import evaluate
from jem_hf.evaluation.report import write_report
from jem_hf.models.image_processing_jem import JemImageProcessor
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
COLUMNS = {
    "accuracy": lambda r: r["prediction"]["accuracy"],
    "AP": lambda r: r["prediction"]["ap"],
    "NLL": lambda r: r["prediction"]["nll"],
    "ECE": lambda r: r["prediction"]["ece"],
    "agreement, every attribute": lambda r: r["generation"]["full"]["agreement"],
    "pairs and triples all right": lambda r: r["generation"]["seen"]["all_right"],
    "Fréchet distance": lambda r: r["generation"]["full"]["frechet_distance"]["samples"],
    "AUROC noisy": lambda r: r["energy"]["noisy"]["auroc"],
    "AUROC blurred": lambda r: r["energy"]["blurred"]["auroc"],
    "AUROC upside down": lambda r: r["energy"]["upside_down"]["auroc"],
}


CD_SHARE = 0.4
QUIET = {"eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True, "sample_grid": 0}


def recipe_of(settings: dict, output_dir: Path, **training):
    """The recipe celeba-32 with the settings of a row."""
    recipe = load_recipe("celeba-32")
    for name, value in {**settings, **training, "output_dir": str(output_dir)}.items():
        recipe.override(name, value)
    return recipe


class StepTimes(TrainerCallback):
    """When each training step ended."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def seconds_a_step(settings: dict, splits: dict, output_dir: Path, num_steps: int = 12) -> float:
    """Median time of a training step, the first half left out."""
    times = StepTimes()
    recipe = recipe_of(settings, output_dir, max_steps=num_steps, chain_free_steps=0, **QUIET)
    trainer = make_trainer(recipe, splits, {})
    trainer.add_callback(times)
    trainer.train()
    return median(end - start for start, end in pairwise(times.ends[num_steps // 2 - 1 :]))


def run(settings: dict, splits: dict, output_dir: Path, minutes: float) -> dict:
    """Train one row for as many steps as fit into the time, and evaluate it."""
    seconds, steps = 60 * minutes, {}
    mixed = settings.get("warmup_weight")
    if mixed:
        steps["chain_free_steps"] = int((1 - CD_SHARE) * seconds / seconds_a_step({}, splits, output_dir))
        seconds *= CD_SHARE
    steps["max_steps"] = steps.get("chain_free_steps", 0) + int(seconds / seconds_a_step(settings, splits, output_dir))
    recipe = recipe_of(settings, output_dir, max_minutes=1.1 * minutes, **steps, **QUIET)
    trainer = make_trainer(recipe, splits, {})
    start = time.perf_counter()
    trainer.train()
    spent = (time.perf_counter() - start) / 60
    trainer.save_model()
    report, pictures = evaluate(trainer.ema.module, splits, num_images=192, num_cas=0)
    write_report(report, pictures, output_dir, trainer.model.config)
    return {"minutes": spent, "steps": trainer.state.global_step, **report}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help="CelebA: a folder or Hub id")
    parser.add_argument("--minutes", type=float, default=5.0, help="training time of a row")
    parser.add_argument("--output", type=Path, default=Path("runs/compare"))
    args = parser.parse_args()

    recipe = load_recipe("celeba-32", {"name_or_path": args.dataset})
    splits, _ = load_splits(recipe.dataset, JemImageProcessor(**recipe.image_processor))
    print("| training | minutes | steps | " + " | ".join(COLUMNS) + " |")
    print("|---|" + "---:|" * (2 + len(COLUMNS)))
    for name, settings in ROWS.items():
        folder = args.output / name.replace(" ", "-").replace(",", "")
        file = folder / "result.json"
        if not file.exists():
            result = run(settings, splits, folder, args.minutes)
            file.write_text(json.dumps(result))
        result = json.loads(file.read_text())
        cells = [f"{column(result):.4g}" for column in COLUMNS.values()]
        print(f"| {name} | {result['minutes']:.1f} | {result['steps']} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

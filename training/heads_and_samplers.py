"""Heads and samplers side by side on avatars: `python training/heads_and_samplers.py --minutes 4`.

Every head trains the network of the recipe avatars-32 for the same time, its steps being timed first; every sampler
draws from the product head. An oracle that learnt from real avatars judges the images. Prints two Markdown tables and
keeps runs in --output, where a finished one stays.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch

from jem_hf.evaluation.evaluate import with_half_of_novel
from jem_hf.evaluation.judges import load_oracle
from jem_hf.evaluation.prediction import predict
from jem_hf.evaluation.requests import held_out_combinations, requests_by_kind
from jem_hf.metrics.prediction import prediction_metrics, request_metrics
from jem_hf.models.heads_jem import HEADS
from jem_hf.models.image_processing_jem import JemImageProcessor
from jem_hf.models.modeling_jem import JemModel
from jem_hf.training.recipes import load_recipe, load_splits, make_trainer

QUIET = {"eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True, "sample_grid": 0}
NUM_TIMED = 12
STEP = 1.6 / 24
SAMPLERS = {  # name, steps, own arguments
    "flow, 24 equal steps": ("flow", 24, {"step_size": STEP}),
    "flow, 12 equal steps": ("flow", 12, {"step_size": 2 * STEP}),
    "flow with momentum .5, 12 steps": ("flow", 12, {"step_size": STEP, "momentum": 0.5}),
    "Langevin, noise .01, 24 steps": ("langevin", 24, {"step_size": STEP, "noise_scale": 0.01}),
    "Langevin cooled from .01 to 0, 24 steps": (
        "unadjusted_langevin",
        24,
        {"step_size": STEP, "temperature": lambda progress: 0.01 * (1 - progress)},
    ),
    "MALA at .001, 24 steps": ("mala", 24, {"step_size": STEP, "temperature": 0.001}),
    "HMC at .001, 6 trajectories of 4": ("hmc", 6, {"step_size": 0.2, "num_leapfrog": 4, "temperature": 0.001}),
    "mixed HMC at .001, 6 of 4": ("mixed_hmc", 6, {"step_size": 0.2, "num_leapfrog": 4, "temperature": 0.001}),
}


def train(head: str, splits: dict, folder: Path, minutes: float) -> float:
    """A model with this head, in `folder`; returns the number of its steps."""

    def trainer_of(**training):
        recipe = load_recipe("avatars-32")
        for name, value in {"head": head, "output_dir": str(folder), **QUIET, **training}.items():
            recipe.override(name, value)
        return make_trainer(recipe, splits, {})

    times = []
    for _ in range(2):  # the first pays for the start
        start = time.perf_counter()
        trainer_of(max_steps=NUM_TIMED).train()
        times.append((time.perf_counter() - start) / NUM_TIMED)
    steps = int(60 * minutes / times[-1])
    trainer = trainer_of(max_steps=steps, max_minutes=1.2 * minutes)
    trainer.train()
    trainer.save_model()
    return trainer.state.global_step


def judge(model, oracle, requests: dict, sampler="flow", num_steps=24, sampler_kwargs=None) -> dict:
    """What the oracle finds in an image for each request, and the seconds that one takes."""
    result, times = {}, []
    for kind, rows in requests.items():
        images = []
        generator = torch.Generator().manual_seed(0)
        for batch in rows.split(64):
            start = time.perf_counter()
            chain = dict(sampler=sampler, num_inference_steps=num_steps, sampler_kwargs=sampler_kwargs)
            x, _ = model.generate(batch, generator=generator, **chain)
            times.append((time.perf_counter() - start) / len(batch))
            images.append(x.clamp(-1, 1))
        result[kind] = request_metrics(oracle.predict(torch.cat(images)), rows)
    return {**result, "seconds": median(times)}


def row(name: str, result: dict, *more) -> str:
    numbers = [
        result["full"]["agreement"],
        result["full_novel"]["agreement"],
        result["seen"]["all_right"],
        result["novel"]["all_right"],
        result["seconds"],
    ]
    return f"| {name} | " + " | ".join([*more, *(f"{value:.3f}" for value in numbers)]) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0, help="training time of a head")
    parser.add_argument("--num-images", type=int, default=192, help="for each kind of request")
    parser.add_argument("--output", type=Path, default=Path("runs/heads"))
    args = parser.parse_args()

    recipe = load_recipe("avatars-32")
    splits, _ = load_splits(recipe.dataset, JemImageProcessor(**recipe.image_processor))
    train_split, test, novel = splits["train"], splits["test"], splits["novel"]
    judged, novel = with_half_of_novel(train_split, novel)

    def requests_of(model):
        held_out = held_out_combinations(model.config, train_split.labels, novel.labels)
        requests = requests_by_kind(test.labels, novel.labels, held_out, args.num_images)
        return {kind: rows for kind, (rows, _) in requests.items()}

    columns = "full | full, held-out | pairs and triples all right | held-out ones all right | seconds an image |"
    print("| head | steps | accuracy | ECE | " + columns + "\n|---|" + 8 * "---:|", flush=True)
    for head in HEADS:
        folder = args.output / head
        if not (folder / "result.json").exists():
            steps = train(head, splits, folder, args.minutes)
            model = JemModel.from_pretrained(folder)
            oracle = load_oracle(judged, model.config.num_values)
            part = test.subset(torch.arange(500))
            logits, _ = predict(model, part.images)
            metrics = prediction_metrics(logits.softmax(-1).numpy(), part.labels.numpy(), part.attributes)
            result = judge(model, oracle, requests_of(model)) | {name: metrics[name] for name in ("accuracy", "ece")}
            (folder / "result.json").write_text(json.dumps({"steps": steps, **result}))
        result = json.loads((folder / "result.json").read_text())
        print(row(head, result, f"{result['steps']}", f"{result['accuracy']:.4f}", f"{result['ece']:.4f}"), flush=True)

    model = JemModel.from_pretrained(args.output / "product")
    oracle = load_oracle(judged, model.config.num_values)
    requests = requests_of(model)
    print("\n| sampler | " + columns + "\n|---|" + 5 * "---:|", flush=True)
    for name, (sampler, num_steps, kwargs) in SAMPLERS.items():
        print(row(name, judge(model, oracle, requests, sampler, num_steps, kwargs)), flush=True)


if __name__ == "__main__":
    main()

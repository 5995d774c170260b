"""
Six trials of joint energies beside classifiers of the same network: `python evidence.py DATASET --model MODEL`.

Energies and classifiers are trained from scratch on the codes of MODEL, which gives its autoencoder and settings.
Numbers go to --output, one file a seed and trial, and what is there stays; figures.py draws them. --quick is a trial
of the trial.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from contenders import CONTENDERS, train_contender, with_calibrated
from figures import write_figures
from torchvision.transforms.v2.functional import pil_to_tensor
from trials import Data, attacks, combinations, few_labels, known_labels, outliers, shift

from jem_hf import JemImageProcessor, JemModel
from jem_hf.data.avatars import render
from jem_hf.evaluation.evaluate import with_half_of_novel
from jem_hf.evaluation.judges import load_oracle
from jem_hf.evaluation.requests import held_out_combinations
from jem_hf.models.image_processing_jem import to_pixels
from jem_hf.training.splits import load_evaluation_splits, load_splits, validation_part

TRIALS = ("few_labels", "shift", "outliers", "known_labels", "combinations", "attacks")

SIZES = {"steps": (2000, 60), "seeds": (3, 1), "num_images": (1000, 64)}  # usual, quick


def load_data(args, model: JemModel) -> Data:
    processor = JemImageProcessor.from_pretrained(args.model)
    splits = load_evaluation_splits(args.dataset, processor, model.config)
    train, validation = validation_part(splits)
    others = {}
    for name in args.others:
        test = load_splits({"name_or_path": name}, processor)[0]["test"]
        others[Path(name).name] = to_pixels(test.sample(args.num_images).images)
    if args.model != "jem-avatars":
        avatars = [pil_to_tensor(render(i, size=model.config.image_size)[0]) for i in range(args.num_images)]
        others["avatars"] = to_pixels(torch.stack(avatars))
    return Data(train, validation, splits["test"], splits.get("novel"), others, args.num_images)


def run(args, seed: int) -> dict:
    """The numbers of one seed by trial."""
    base = JemModel.from_pretrained(args.model)
    data, folder = load_data(args, base), args.output
    report, contenders = {}, {}
    for name in args.trials:
        file = folder / f"{name}-{seed}.json"
        if file.exists():
            report[name] = json.loads(file.read_text())
            continue
        start = time.perf_counter()
        if name != "few_labels" and not contenders:
            for each in args.contenders:
                contenders[each] = train_contender(each, base, data.train, data.validation, args.steps, seed)
                print(f"{each}: {time.perf_counter() - start:.0f} s", flush=True)
        exact = {name: each for name, each in contenders.items() if name != "joint, pairwise"}
        if name == "few_labels":
            fractions = {"fractions": (0.1, 1.0)} if args.quick else {}
            found = few_labels(base, data, args.steps, seed, **fractions)
        elif name == "shift":
            found = shift(with_calibrated(exact, data.validation), data)
        elif name == "outliers":
            found = outliers(exact, data)
        elif name == "known_labels":
            found = known_labels({n: contenders[n] for n in ("joint", "joint, pairwise") if n in contenders}, data)
        elif name == "attacks":
            found = attacks(exact, data)
        else:
            judged, novel = with_half_of_novel(data.train, data.novel)
            held_out = held_out_combinations(base.config, data.train.labels, data.novel.labels)
            oracle = load_oracle(judged, num_values=base.config.num_values)
            data.novel = novel
            found = combinations(exact, data, held_out, oracle)
        report[name] = found
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1))
        print(f"{name}, seed {seed}: {time.perf_counter() - start:.0f} s", flush=True)
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", default="avatars")
    parser.add_argument(
        "--model", default="jem-avatars", help="whose codes, network and held-out combinations are used"
    )
    parser.add_argument("--trials", nargs="+", default=TRIALS, choices=TRIALS)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--others", nargs="*", default=[], help="folders of images of something else")
    parser.add_argument("--steps", type=int, help="of training an energy; classifiers take up to as many")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--num-images", type=int, help="that a trial looks at")
    parser.add_argument("--quick", action="store_true", help="small defaults for these, and two shares of labels")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    for name, (usual, quick) in SIZES.items():
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else usual)
    reports = [run(args, seed) for seed in range(args.seeds)]
    write_figures(reports, args.output)


if __name__ == "__main__":
    main()

"""What curation is worth: `python benchmarks/curation.py tag|kill|audit|duplicates|balance ...`.

tag: 10,000 JPEGs, beside a pipeline of transformers with the same model and beside the JPEG decoder alone.
kill: tagging is killed half way and called again; and its memory for pictures of 12 megapixels.
audit: labels that were flipped are looked for, beside cleanlab (`pip install cleanlab`).
duplicates: 200 copies are planted among images, re-encoded, shifted by a pixel or 5% brighter.
balance: a classifier with and without drawn images of three combinations that were thinned, beside reweighting.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import count, islice
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageEnhance
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from jem_hf import AttributeTensors, JemConfig, JemImageProcessor, JemModel
from jem_hf.curation.audit import cross_fit
from jem_hf.curation.balance import combination_log_odds, fill_combinations
from jem_hf.curation.duplicates import near_duplicates
from jem_hf.data.avatars import render
from jem_hf.data.tensors import random_rows
from jem_hf.evaluation.judges import Oracle, load_oracle
from jem_hf.models.image_processing_jem import to_pixels
from jem_hf.models.requests_jem import parse_request
from jem_hf.training.augmentation import augment, random_shift
from jem_hf.training.devices import has_native_bfloat16
from jem_hf.training.splits import load_evaluation_splits


def tag(args) -> dict:
    """Images a second of each way, in processes of their own, in turns; and the peak memory of ours."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_jpegs(folder / "images", args.num_images)
        ways = {
            "jem-hf predict": f"""
from jem_hf.cli import app
app(["predict", "{args.model}", "images", "-o", "tags.parquet"])""",
            "pipeline of transformers": f"""
from pathlib import Path
import jem_hf
from transformers import pipeline
tag = pipeline("image-classification", model=jem_hf.JemModel.from_pretrained("{args.model}"),
               image_processor=jem_hf.JemImageProcessor.from_pretrained("{args.model}"))
for _ in tag([str(file) for file in Path("images").iterdir()], batch_size=64): pass""",
            "decoder alone": """
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from PIL import Image
def decode(file):
    with Image.open(file) as image: image.load()
if __name__ == "__main__":
    with ProcessPoolExecutor() as pool: list(pool.map(decode, Path("images").iterdir(), chunksize=64))""",
        }
        ways["decoder alone, reduced"] = ways["decoder alone"].replace(
            "image.load()", "image.draft(None, (128, 128)); image.load()"
        )
        nothing = {  # what each starts with
            "jem-hf predict": f"from jem_hf import Tagger; Tagger('{args.model}')",
            "pipeline of transformers": f"import jem_hf; jem_hf.JemModel.from_pretrained('{args.model}')",
        }
        starts = {each: _seconds(code, folder) for each, code in nothing.items()}
        rates: dict[str, list[float]] = {each: [] for each in ways}
        for _ in range(args.rounds):
            for each, code in ways.items():
                (folder / "tags.parquet").unlink(missing_ok=True)
                rates[each].append(round(args.num_images / (_seconds(code, folder) - starts.get(each, 0)), 1))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    return {"images_per_second": rates, "seconds_of_start": starts, "peak_mib_of_one_process": peak}


def write_jpegs(folder: Path, num_images: int, size: tuple[int, int] = (500, 500)) -> None:
    folder.mkdir()
    for i in range(min(200, num_images)):  # as many as differ; the rest are copies
        face = render(i, seed=77)[0].resize(size, Image.Resampling.BICUBIC)
        noise = Image.effect_noise(size, 12).convert("RGB")  # what a camera leaves, or JPEG decodes too fast
        face = Image.blend(face.convert("RGB"), noise, 0.1)
        for copy in range(i, num_images, 200):
            face.save(folder / f"{copy}.jpg", quality=90)


def kill(args) -> dict:
    """Rows after a killed and a second call; and the peak memory of tagging a sixtieth as many of 12 megapixels."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_jpegs(folder / "images", args.num_images)
        command = [sys.executable, "-c", "from jem_hf.cli import app; app()", "predict", args.model]
        command += ["images", "-o", "tags.parquet"]
        first = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
        parts, half = folder / "tags.parquet.parts", 0
        while first.poll() is None and half < args.num_images // 2:
            time.sleep(0.1)
            half = sum(len(pd.read_parquet(part)) for part in parts.glob("*.parquet"))
        report = {"killed_after": half, "was_running": first.poll() is None}
        first.kill(), first.wait()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        paths = pd.read_parquet(folder / "tags.parquet").iloc[:, 0]
        report |= {"rows": len(paths), "twice": int(paths.duplicated().sum())}
        write_jpegs(folder / "large", args.num_images // 60, (4000, 3000))
        command[-3:] = ["large", "-o", "large.parquet"]
        usage = os.wait4(subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL).pid, 0)[2]
        return report | {"peak_mib_at_12_megapixels": usage.ru_maxrss // 1024}


def _seconds(code: str, folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True, env=os.environ)
    return time.perf_counter() - start


def audit(args) -> dict:
    """Precision among as many suspects as there are flips, and AUROC, for each share of flipped labels."""
    from cleanlab.multilabel_classification.rank import get_label_quality_scores_per_class
    from sklearn.metrics import roc_auc_score

    model = JemModel.from_pretrained(args.model)
    train = _splits(args, model)["train"].sample(args.num_images)
    found = {}
    for share in (0.02, 0.05, 0.1):
        generator = torch.Generator().manual_seed(args.seed)
        flipped = (torch.rand(train.labels.shape, generator=generator) < share) & (train.labels >= 0)
        labels = torch.where(flipped, 1 - train.labels, train.labels)
        scores = {}
        for name, head in (("cross-fitted", "product"), ("cross-fitted, given the other labels", "pairwise")):
            if head == "product" or args.pairwise:
                changed = {"head": head, "calibrated": False}
                network = JemModel(JemConfig.from_dict(model.config.to_dict() | changed))
                if model.autoencoder is not None:
                    network.autoencoder.load_state_dict(model.autoencoder.state_dict())
                p = cross_fit(network, train.images, labels, num_folds=2, num_epochs=args.epochs)
                scores[name] = p.gather(-1, labels.clamp(min=0)[..., None])[..., 0].numpy()
                if head == "product":
                    positive = [np.flatnonzero(row == 1).tolist() for row in labels.numpy()]
                    for method in ("self_confidence", "normalized_margin"):
                        adjust = {"method": method}
                        quality = get_label_quality_scores_per_class(positive, p[..., 1].numpy(), **adjust)
                        scores[f"cleanlab, {method.replace('_', ' ')}"] = np.asarray(quality)
        p = model_probabilities(model, train.images)
        scores["the model itself, trained on the right labels"] = p.gather(-1, labels.clamp(min=0)[..., None])[
            ..., 0
        ].numpy()
        truth = flipped.numpy().ravel()
        found[share] = {
            name: {
                "precision": round(float(truth[np.argsort(each.ravel())[: truth.sum()]].mean()), 4),
                "auroc": round(float(roc_auc_score(truth, -each.ravel())), 4),
            }
            for name, each in scores.items()
        }
        print(json.dumps({share: found[share]}), flush=True)
    return found


@torch.no_grad()
def model_probabilities(model: JemModel, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([model.predict_proba(to_pixels(batch)) for batch in images.split(250)])


def duplicates(args) -> dict:
    """How many planted copies are found, by kind, and what else is."""
    model = JemModel.from_pretrained(args.model)
    images = _splits(args, model)["train"].sample(args.num_images).images
    size = images.shape[-1]
    kinds = {
        "re-encoded, quality 75": lambda image: _jpeg(image, 75),
        "re-encoded, quality 50": lambda image: _jpeg(image, 50),
        "shifted by a pixel": lambda image: image.transform((size, size), Image.Transform.AFFINE, (1, 0, 1, 0, 1, 0)),
        "5% brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.05),
    }
    start = time.perf_counter()
    before = {(i, j) for i, j, _ in near_duplicates(images)}
    seconds = time.perf_counter() - start
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed))[:200].tolist()
    names = list(kinds)
    copies = [kinds[names[n % 4]](to_pil_image(images[i])) for n, i in enumerate(chosen)]
    planted = {(i, len(images) + n): names[n % 4] for n, i in enumerate(chosen)}
    pairs = near_duplicates(torch.cat([images, torch.stack([pil_to_tensor(copy) for copy in copies])]))
    found = {(i, j) for i, j, _ in pairs}
    by_kind = {kind: sum(planted.get(pair) == kind for pair in found) for kind in kinds}
    others = [(i, j) for i, j in found - before if (i, j) not in planted]
    own = sorted(before)[: args.show]
    if own:
        pictures = [to_pil_image(images[i]) for pair in own for i in pair]
        from jem_hf.plots import image_grid

        image_grid(pictures, 16).save("duplicates.png")
    return {
        "found_of_50": by_kind,
        "other_new_pairs": len(others),
        "pairs_before": len(before),
        "seconds": round(seconds, 1),
    }


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def balance(args) -> dict:
    """
    Accuracy of the attributes that combinations name first, overall and in the worst group, by remedy and seed.

    All see the whole training split, as the model has, ten images of each combination that was kept from both, and the
    same number of steps. One classifier tells all of the attributes.
    """
    model = JemModel.from_pretrained(args.model)
    splits, config = _splits(args, model), model.config
    combinations = [parse_request(text, config) for text in args.combinations]
    pairs = [[config.attributes.index(name.strip(" ~")) for name in text.split("&")] for text in args.combinations]
    rest, test = splits["novel"], splits["test"]
    kept = torch.ones(len(rest), dtype=torch.bool)
    for combination in combinations:
        wanted = torch.tensor(combination)
        rows = ((rest.labels == wanted) | (wanted < 0)).all(1).nonzero()[:, 0]
        kept[rows[random_rows(len(rows), 10)]] = False
    thinned = _joined(splits["train"], rest.subset(~kept))
    judged = _joined(test, rest.subset(kept))
    oracle = load_oracle(thinned, config.num_values)
    filled, reports, p = thinned, [], oracle.predict_proba(judged.images)
    for text, places, combination in zip(args.combinations, pairs, combinations):
        wanted = [combination[k] for k in places]
        real = (judged.labels[:, places] == torch.tensor(wanted)).all(1)
        counts = (thinned.labels[:, places[0]] * 2 + thinned.labels[:, places[1]]).bincount(minlength=4).view(2, 2)
        freed = combination_log_odds(p[:, places], counts).argmax(1) == 2 * wanted[0] + wanted[1]
        plain = (p[:, places].argmax(-1) == torch.tensor(wanted)).all(1)
        shares = {n: {"real": s[real].float().mean().item(), "others": s[~real].float().mean().item()}
                  for n, s in (("plain", plain), ("freed", freed))}  # fmt: skip
        print(json.dumps({"recognised": text, **shares}), flush=True)
        names = [config.attributes[k] for k in places]
        drawn, report = fill_combinations(model, thinned, names, args.per_combination, oracle)
        reports.append(report)
        print(json.dumps(report), flush=True)
        if drawn:
            labels = torch.full((len(drawn), len(config.attributes)), -1)
            labels[:, places] = torch.tensor([[int(each["attributes"][name]) for name in names] for each in drawn])
            pictures = torch.stack([pil_to_tensor(each["image"]) for each in drawn])
            filled = _joined(filled, AttributeTensors(pictures, labels, thinned.attributes))
    results: dict[str, list] = {}
    for seed in range(args.seeds):
        for name in args.remedies:
            part = filled if name.startswith("balanced") else thinned
            weighted = name.endswith("reweighted")
            p = _classify(part, pairs, weighted, seed, args.steps, judged.images)
            found = {}
            for text, (k, m), own in zip(args.combinations, pairs, p.unbind(1)):
                right = (own > 0.5).long() == judged.labels[:, k]
                group = judged.labels[:, k] * 2 + judged.labels[:, m]
                worst = min(right[group == g].float().mean().item() for g in group.unique())
                found[text] = {"overall": right.float().mean().item(), "worst_group": worst}
            results.setdefault(name, []).append(found)
            print(json.dumps({name: found, "seed": seed}), flush=True)
    return {"drawn": reports, "results": results}


def _joined(*parts: AttributeTensors) -> AttributeTensors:
    images, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return AttributeTensors(images, labels, parts[0].attributes)


def _classify(train, pairs: list[list[int]], weighted: bool, seed: int, num_steps: int, images) -> torch.Tensor:
    """
    `p(y_k)` (N, number of pairs) of images by the oracle's network, trained on the first attributes of pairs alone.

    Where weighted, the four groups of a pair weigh the same.
    """
    torch.manual_seed(seed)
    targets = train.labels[:, [k for k, _ in pairs]]
    weights = torch.ones(targets.shape)
    if weighted:
        for column, (k, m) in enumerate(pairs):
            known = (train.labels[:, [k, m]] >= 0).all(1)  # drawn images have the labels of their request alone
            group = (train.labels[:, k] * 2 + train.labels[:, m])[known]
            weights[known, column] = (len(group) / 4 / group.bincount(minlength=4).clamp(min=1))[group]
    network = Oracle(train.images.shape[1], [2] * len(pairs)).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, num_steps)
    passes = (rows for _ in count() for rows in torch.randperm(len(targets)).split(64))
    for rows in islice(passes, num_steps):
        x = to_pixels(random_shift(augment(train.images[rows], flip=True, blur=False), 2))
        with torch.autocast("cpu", torch.bfloat16, enabled=has_native_bfloat16()):
            logits = network(x)
        y = targets[rows]
        losses = F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), ignore_index=-1, reduction="none")
        optimizer.zero_grad()
        ((weights[rows].flatten() * losses).sum() / (y >= 0).sum()).backward()
        optimizer.step()
        schedule.step()
    return network.eval().predict_proba(images)[:, :, 1]


def _splits(args, model: JemModel) -> dict[str, AttributeTensors]:
    return load_evaluation_splits(args.dataset, JemImageProcessor.from_pretrained(args.model), model.config)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[each.__name__ for each in (tag, kill, audit, duplicates, balance)])
    parser.add_argument("--model", default="jem-avatars")
    parser.add_argument("--dataset", default="avatars")
    parser.add_argument("--num-images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3, help="tag: how often each way is timed")
    parser.add_argument("--epochs", type=int, default=6, help="audit: passes over the data")
    parser.add_argument("--steps", type=int, default=1000, help="balance: of 64 images, of each classifier")
    parser.add_argument("--pairwise", action="store_true", help="audit: judge labels given the others, too")
    parser.add_argument("--show", type=int, default=24, help="duplicates: pairs of the data's own in duplicates.png")
    combinations = ["Blond_Hair & Male", "Bangs & Male", "Brown_Hair & ~No_Beard"]  # of those the recipe keeps out
    parser.add_argument(
        "--combinations", nargs="+", default=combinations, help="balance: what is classified & what is rare with it"
    )
    remedies = ["thinned", "thinned, reweighted", "balanced", "balanced, reweighted"]
    parser.add_argument("--remedies", nargs="+", default=remedies, choices=remedies, help="balance: the rows")
    parser.add_argument("--per-combination", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(globals()[args.what](args), indent=2))


if __name__ == "__main__":
    main()

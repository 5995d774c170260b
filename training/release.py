"""Make a zoo folder of a trained run: `python training/release.py RUN RECIPE` evaluates and writes model_cards/NAME.

The folder holds weights, config, image processor, the card with the measured numbers, the report and its pictures.
"""

import argparse
import json
import os
from pathlib import Path

from safetensors.torch import load_file, save_file

from jem_hf.evaluation.evaluate import evaluate
from jem_hf.evaluation.report import document
from jem_hf.models.image_processing_jem import JemImageProcessor
from jem_hf.models.modeling_jem import JemModel
from jem_hf.training.recipes import load_recipe
from jem_hf.training.splits import load_evaluation_splits

NETWORKS = ("autoencoder.", "backbone.")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder that jem-hf train wrote")
    parser.add_argument("recipe", help="the recipe it was trained by")
    parser.add_argument("--dataset", help="where the data is, if not where the recipe says")
    parser.add_argument("--cost", help="what training took, if not as long as the last entry of its log says")
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--baselines", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "model_cards")
    args = parser.parse_args()

    recipe = load_recipe(args.recipe)
    model = JemModel.from_pretrained(args.run)
    processor = JemImageProcessor.from_pretrained(args.run)
    recipe.card.setdefault("base_model", recipe.model.get("from_pretrained"))
    folder = args.output / recipe.card["name"]
    model.save_pretrained(folder, code=False)
    processor.save_pretrained(folder, code=False)
    halve(folder / "model.safetensors")
    model = JemModel.from_pretrained(folder)
    splits = load_evaluation_splits(args.dataset or recipe.card["dataset"], processor, model.config)
    cost = args.cost or _cost(args.run)
    report, pictures = evaluate(model, splits, num_images=args.num_images, baselines=args.baselines)
    document(model, report, pictures, folder, recipe.card, args.recipe, cost)
    print(json.dumps({key: report[key] for key in ("prediction", "generation", "energy")}, indent=2))


def halve(path: Path) -> None:
    """Hold matrices and convolutions in half precision: the model that is evaluated is made of them."""
    weights = load_file(path)
    halved = {name for name, weight in weights.items() if name.startswith(NETWORKS) and weight.ndim >= 2}
    weights = {name: weight.half() if name in halved else weight for name, weight in weights.items()}
    save_file(weights, path, metadata={"format": "pt"})


def _cost(run: Path) -> str:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    runtime = next(entry["train_runtime"] for entry in reversed(history) if "train_runtime" in entry)
    return f"It took {runtime / 60:.0f} minutes on {os.cpu_count()} cores."


if __name__ == "__main__":
    main()

"""Train the model of a recipe: `python training/train.py RECIPE.yaml [--field value ...]`, as `jem-hf train` does."""

import sys

from jem_hf.cli import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]])

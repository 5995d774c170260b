"""What the commands share: their arguments, what becomes of errors, loading, checks and output."""

import json
import os
import sys
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from tqdm import tqdm
from transformers.utils import logging
from typer.core import TyperGroup

from ..curation.framing import parse_crop
from ..hub.zoo import list_models
from ..models.image_processing_jem import JemImageProcessor
from ..models.modeling_jem import JemModel

EXTRAS = {"gradio": "demo", "onnx": "onnx", "onnxscript": "onnx"}  # of this package, by what is lacking
BROKEN_PIPE = 141  # 128 + SIGPIPE, as of programs which that signal ends


class Commands(TyperGroup):
    """Bad input ends any command with one line and exit code 2, a reader that has gone (`| head`) without a word."""

    def invoke(self, context: typer.Context) -> Any:
        try:
            return super().invoke(context)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
            raise typer.Exit(BROKEN_PIPE) from None
        except (ValueError, OSError, StrictDataclassError) as error:
            say(f"jem-hf: {' '.join(str(error).split())}")
            raise typer.Exit(2) from None
        except ModuleNotFoundError as error:
            extra = EXTRAS.get(error.name or "")
            if extra is None:
                raise
            say(f"jem-hf: this needs {error.name}: pip install 'jem_hf[{extra}]'")
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=Commands,
    help="Joint energy-based models: one network that predicts attributes, draws images for them, and scores both.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def name_or_path(text: str) -> str:
    """The name of a model or a dataset, or a path: shells leave `~` as it is in quotes and after an equals sign."""
    return os.path.expanduser(text)


def path(text: str) -> Path:
    return Path(name_or_path(text))


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Model = Annotated[str, typer.Argument(parser=name_or_path, help="Zoo name, Hub id or folder.")]
Folder = Annotated[Path | None, typer.Option("--output", "-o", parser=path, help="Folder of the results.")]
ImageFile = Annotated[Path, typer.Option("--output", "-o", parser=path, help="File of the grid, such as a PNG.")]
Crop = Annotated[
    str | None,
    typer.Option(
        help="Cut images to a square first: x,y,side as shares of one, or auto, where they are least strange."
    ),
]
FIELDS = {"allow_extra_args": True, "ignore_unknown_options": True}  # context settings, see `fields_of`


def fields_of(context: typer.Context) -> dict[str, str]:
    """`--name value` and `--name=value` beside the options of a command as a dict."""
    fields, rest = {}, list(context.args)
    while rest:
        name = rest.pop(0)
        if not name.startswith("--") or name == "--":
            raise ValueError(f"unexpected argument {name!r}: set fields as --field value")
        name, equals, value = name[2:].partition("=")
        if not equals and not rest:
            raise ValueError(f"--{name} needs a value")
        fields[name] = value if equals else rest.pop(0)
    return fields


def check_folder(folder: Path) -> None:
    """Raise `ValueError` where no file can be written into a folder that is there, or no such folder can be made."""
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        with TemporaryDirectory(dir=existing):
            pass
    except OSError as error:
        raise ValueError(f"cannot write into the folder {str(folder)!r}: {error.strerror}") from error


def check_image_file(file: Path) -> None:
    """Raise `ValueError` where an image cannot be written to a file of that name."""
    if file.is_dir():
        raise ValueError(f"{str(file)!r} is a folder: name a file in it, such as {str(file / 'grid.png')!r}")
    try:
        Image.new("RGB", (64, 64)).save(BytesIO(), Image.registered_extensions()[file.suffix.lower()])
    except (KeyError, OSError, ValueError):
        raise ValueError(f"{str(file)!r} is no name of an image file: let it end in .png, .jpg or .webp") from None
    check_folder(file.parent)
    if file.exists() and not os.access(file, os.W_OK):
        raise ValueError(f"cannot write {str(file)!r}: it may only be read")


def load_model(name: str) -> JemModel:
    """A model, on a GPU where there is one. Raises `ValueError` or `OSError` where there is none of that name."""
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # of a checkpoint that does not fit the error says enough
    try:
        return JemModel.from_pretrained(name).to("cuda" if torch.cuda.is_available() else "cpu")
    except OSError as error:
        if Path(name).exists():
            raise
        known = ", ".join(list_models())
        raise ValueError(f"no model {name!r}: it is not in the zoo ({known}), not a folder, and {error}") from error
    finally:
        logging.set_verbosity(verbosity)


def load_processor(
    name: str, model: JemModel, crop: str | None, sources: list[str], output: Path | None = None
) -> JemImageProcessor:
    """The image processor of a model; with `crop` one that cuts images first, see [`parse_crop`]."""
    processor = JemImageProcessor.from_pretrained(name)
    if crop is None:
        return processor
    crop_to, distances = parse_crop(crop, model, processor, sources, output)
    if distances is not None:
        square = ",".join(f"{share:g}" for share in crop_to)
        say(f"--crop {square}: how strange the images are falls from {distances[0]:.1f} to {distances[1]:.1f}")
    return JemImageProcessor(**processor.to_dict() | {"crop_to": crop_to})


def say(message: str) -> None:
    typer.echo(message, err=True)


def print_json(content: dict | list) -> None:
    typer.echo(json.dumps(content, allow_nan=False))


def is_first_process() -> bool:
    """The one of those that torchrun started which writes and prints."""
    return os.environ.get("RANK", "0") == "0"


class ProgressBars:
    """A progress bar for each stage, one after the other."""

    def __enter__(self):
        self.stage, self.bar = None, tqdm(disable=True)
        return self

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage != self.stage:
            self.bar.close()
            self.stage, self.bar = stage, tqdm(desc=stage, total=total, disable=not is_first_process())
        self.bar.update(done - self.bar.n)

    def __exit__(self, *error):
        self.bar.close()

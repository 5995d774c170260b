"""What all commands of `jem-hf` share: options, errors, output."""

import functools
import json
import os
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Joint energy-based models: one network that predicts attributes, draws images for them, and scores both.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
Model = Annotated[str, typer.Argument(help="Zoo name, Hub id or folder.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where to write.")]


def clear_errors(command):
    """Bad input ends a command with one line and exit code 2."""

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        from huggingface_hub.errors import StrictDataclassError

        try:
            return command(*args, **kwargs)
        except (ValueError, OSError, StrictDataclassError) as error:
            message = " ".join(str(error).split())
            typer.echo(f"jem-hf: {message}", err=True)
            raise typer.Exit(2) from None

    return wrapped


def say(message: str) -> None:
    typer.echo(message, err=True)


def is_first_process() -> bool:
    """The one of those that torchrun started which writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def load_model(name: str):
    import torch
    from transformers.utils import logging

    from ..hub.zoo import list_models
    from ..models.modeling_jem import JemModel

    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a checkpoint that does not fit is told by the error alone
    try:
        return JemModel.from_pretrained(name).to("cuda" if torch.cuda.is_available() else "cpu")
    except OSError as error:
        if Path(name).exists():
            raise
        known = ", ".join(list_models())
        raise ValueError(f"no model {name!r}: it is not in the zoo ({known}), not a folder, and {error}") from error
    finally:
        logging.set_verbosity(verbosity)


def load_with_processor(name: str):
    from ..models.image_processing_jem import JemImageProcessor

    return load_model(name), JemImageProcessor.from_pretrained(name)


def print_json(content) -> None:
    typer.echo(json.dumps(content, allow_nan=False))


def fields_of(args: list[str]) -> dict[str, str]:
    """`--name value` and `--name=value` as a dict."""
    fields, rest = {}, list(args)
    while rest:
        name = rest.pop(0)
        if not name.startswith("--") or name == "--":
            raise ValueError(f"unexpected argument {name!r}: set fields as --field value")
        name, equals, value = name[2:].partition("=")
        if not equals and not rest:
            raise ValueError(f"--{name} needs a value")
        fields[name] = value if equals else rest.pop(0)
    return fields

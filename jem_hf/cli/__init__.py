"""The command `jem-hf`: results go to standard output, progress and messages to standard error."""

from . import train, images, curation, hub  # noqa: F401  # isort: skip  the order of `jem-hf --help`
from .shared import app

__all__ = ["app"]

"""The command `jem-hf`: results go to standard output, progress and messages to standard error."""

from . import commands, images  # noqa: F401  what they define are commands of `app`
from .shared import app

__all__ = ["app"]

"""Checkpoints that are whole or not there: written under another name, synchronised to the disk, then renamed."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

logger = logging.get_logger(__name__)
RUN_STATE_NAME = "progress.json"
PARTIAL = ".partial"  # ends the names of folders that are written or deleted, which are no checkpoints


def new_run_id() -> str:
    """What tells the checkpoints of one run from those of others: when it began, so that later runs sort behind."""
    return datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")


def checkpoint_folder(output_dir: str | Path, step: int) -> Path:
    """Where the checkpoint of an optimiser step is."""
    return Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints in a folder: those of later runs behind those of earlier ones, and those of a run by step."""
    name = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)")
    steps = {path: int(found[1]) for path in Path(output_dir).glob("*") if (found := name.fullmatch(path.name))}
    return sorted(filter(Path.is_dir, steps), key=lambda path: (run_of(path), steps[path]))


def read_run_state(checkpoint: str | Path) -> dict:
    """What a checkpoint holds beside tensors; nothing where it has no such file."""
    path = Path(checkpoint, RUN_STATE_NAME)
    return json.loads(path.read_text()) if path.is_file() else {}


def run_of(checkpoint: str | Path) -> str:
    """The id of the run that wrote a checkpoint; empty where an earlier version did."""
    return read_run_state(checkpoint).get("run", "")


@contextlib.contextmanager
def whole_folder(
    folder: Path, is_writer: bool = True, wait_for_all: Callable[[], None] = lambda: None
) -> Iterator[Path]:
    """
    Give a folder to write to, which becomes `folder` in one step when all is written, and vanishes on an error.

    Args:
        is_writer (`bool`, *optional*, defaults to `True`):
            Whether this process makes, renames and removes; the others only write files.
        wait_for_all (`Callable`, *optional*): Called where all processes must have come as far.

    Raises:
        OSError: the files cannot be written, as on a full disk.
    """
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    try:
        with _clear_disk_errors(folder):
            if is_writer:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            wait_for_all()
            yield partial
            wait_for_all()
            if is_writer:
                _synchronise(*partial.rglob("*"), partial)
                if folder.exists():
                    remove_folder(folder)
                partial.rename(folder)
                _synchronise(folder.parent)
    finally:
        if is_writer:
            shutil.rmtree(partial, ignore_errors=True)
    wait_for_all()


@contextlib.contextmanager
def replaced_files(folder: Path) -> Iterator[Path]:
    """
    Give a folder to write to, whose files then replace those of the same name in `folder`, each in one step.

    Raises:
        OSError: the files cannot be written, as on a full disk; `folder` is as it was.
    """
    with _clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=PARTIAL, dir=folder) as name:
            partial = Path(name)
            yield partial
            _synchronise(*partial.iterdir())
            for path in partial.iterdir():
                path.replace(folder / path.name)
        _synchronise(folder)


@contextlib.contextmanager
def _clear_disk_errors(folder):
    """One error for a disk that is full: Python, safetensors and torch raise exceptions of three kinds."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        free = shutil.disk_usage(next(each for each in folder.absolute().parents if each.is_dir())).free
        raise OSError(
            f"{folder} cannot be written, on a disk with {free // 2**20} MiB left ({error}): make room, then go on "
            "from the last checkpoint with --resume"
        ) from error


def remove_folder(folder: Path) -> None:
    """Delete a checkpoint; one that is half deleted does not look like one either."""
    partial = folder.with_name(f".{folder.name}.old{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    folder.rename(partial)
    shutil.rmtree(partial, ignore_errors=True)


def remove_partial_folders(output_dir: str | Path) -> None:
    """Delete what a run that was killed while it wrote or deleted a checkpoint has left."""
    for partial in Path(output_dir).glob(f".{PREFIX_CHECKPOINT_DIR}-*{PARTIAL}"):
        logger.warning(f"removed {partial}, a checkpoint that was never completed")
        shutil.rmtree(partial, ignore_errors=True)


def rotate(checkpoints: list[Path], limit: int | None, best: str | None) -> None:
    """Delete a run's oldest checkpoints above a number of `limit`, never the last nor the `best`; None keeps all."""
    excess = len(checkpoints) - limit if limit else 0
    for checkpoint in checkpoints[:-1]:
        if excess > 0 and (best is None or checkpoint != Path(best)):
            remove_folder(checkpoint)
            excess -= 1


def _synchronise(*paths: Path) -> None:
    """Wait until files and folders are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

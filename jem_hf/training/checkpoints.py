"""Checkpoints that are whole or not there: written under another name, synchronised to the disk, then renamed."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints
from transformers.utils import logging

logger = logging.get_logger(__name__)


def checkpoint_folder(output_dir: str | Path, step: int) -> Path:
    """Where the checkpoint of an optimiser step is."""
    return Path(output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"


def is_partial(folder: Path) -> bool:
    """Whether it is written to by way of [`whole_folder`]."""
    return folder.suffix == ".partial"


@contextlib.contextmanager
def whole_folder(folder: Path, is_writer: bool = True, wait_for_all=lambda: None):
    """
    Give a folder to write to, which becomes `folder` in one step when all is written, and vanishes on an error.

    Its name is one that `get_last_checkpoint` does not take for a checkpoint's.

    Args:
        is_writer: whether this process makes, renames and removes; the others only write files.
        wait_for_all: called where all processes must have come as far.

    Raises:
        OSError: the files cannot be written, as on a full disk.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        with _clear_disk_errors(folder):
            if is_writer:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            wait_for_all()
            yield partial
            wait_for_all()
            if is_writer:
                _synchronise(partial)
                if folder.exists():
                    remove_folder(folder)
                partial.rename(folder)
                _fsync(folder.parent)
    finally:
        if is_writer:
            shutil.rmtree(partial, ignore_errors=True)
    wait_for_all()


@contextlib.contextmanager
def replaced_files(folder: Path):
    """
    Give a folder to write to, whose files then replace those of the same name in `folder`, each in one step.

    Raises:
        OSError: the files cannot be written, as on a full disk; `folder` is as it was.
    """
    with _clear_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", suffix=".partial", dir=folder) as partial:
            yield Path(partial)
            _synchronise(Path(partial))
            for path in Path(partial).iterdir():
                path.replace(folder / path.name)
        _fsync(folder)


@contextlib.contextmanager
def _clear_disk_errors(folder):
    """Of a full disk Python, safetensors and torch tell by exceptions of three kinds."""
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
    partial = folder.with_name(f".{folder.name}.old.partial")
    shutil.rmtree(partial, ignore_errors=True)
    folder.rename(partial)
    shutil.rmtree(partial, ignore_errors=True)


def remove_partial_folders(output_dir: str | Path) -> None:
    """Delete what a run that was killed while it wrote or deleted a checkpoint has left."""
    for partial in Path(output_dir).glob(f".{PREFIX_CHECKPOINT_DIR}-*.partial"):
        logger.warning(f"removed {partial}, a checkpoint that was never completed")
        shutil.rmtree(partial, ignore_errors=True)


def rotate(output_dir: str | Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints above a number of `limit`, never the newest nor the `best`; None keeps all."""
    checkpoints = [Path(path) for path in sort_checkpoints(str(output_dir))]
    excess = len(checkpoints) - limit if limit else 0
    for checkpoint in checkpoints[:-1]:
        if excess > 0 and (best is None or checkpoint != Path(best)):
            remove_folder(checkpoint)
            excess -= 1


def _synchronise(folder: Path) -> None:
    """Wait until a folder and all in it are on the disk."""
    for parent, _, names in os.walk(folder):
        for name in names:
            _fsync(Path(parent, name))
        _fsync(Path(parent))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

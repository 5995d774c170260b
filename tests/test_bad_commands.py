"""Commands that are refused: one line, exit code 2, and nothing written."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from jem_hf.cli import app

AVATAR = str(Path(__file__).parents[1] / "model_cards" / "jem-avatars" / "samples.png")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "args, message",
    [
        (("train", "nowhere.yaml"), "no recipe 'nowhere.yaml'"),
        (("train", "quickstart", "--max_step", "3"), "did you mean 'max_steps'"),
        (("train", "quickstart", "max_steps"), "unexpected argument"),
        (("train", "quickstart", "--max_steps"), "needs a value"),
        (("train", "quickstart", "--objective", "cd", "--name_or_path", "./nowhere"), "unknown objective 'cd'"),
        (("train", "quickstart", "--max_steps", "many"), "max_steps is of type int"),
        (("train", "quickstart", "--bf16", "3"), "bf16 is of type bool"),
        (("generate", "jem-avatars", "Eyeglases"), "did you mean 'Eyeglasses'"),
        (("generate", "jem-avatars", "Hat & ~Hat"), "contradicts"),
        (("generate", "no-such-model", "Hat"), "no-such-model"),
        (("generate", "jem-avatars", "Hat |"), "Hat |"),
        (("generate", "jem-avatars", "Hat", "--sampler", "mla"), "did you mean 'mala'"),
        (("generate", "jem-avatars", "Hat", "--sampler", "hmc"), "needs step_size"),
        (("generate", "jem-avatars", "Hat", "--sampler-kwargs", "fast"), "is a mapping"),
        (("generate", "jem-avatars", "Hat", "--to", "Hat | Beard"), "several alternatives"),
        (("edit", "jem-avatars", "nowhere.png", "Hat"), "nowhere.png"),
        (("edit", "jem-avatars", AVATAR, "Hat", "--strength", "2"), "strength is above 0"),
        (("edit", "jem-avatars", AVATAR, "Hat", "--mask", "nowhere.png"), "nowhere.png"),
        (("edit", "jem-avatars", AVATAR, "Hat", "--crop", "auto"), "one image does not tell its crop"),
        (("edit", "jem-avatars", AVATAR, "Hat", "--crop", "0.5,0.5,2"), "three shares of an image"),
        (("predict", "jem-avatars", AVATAR, "--given", "Hat | Beard"), "|"),
        (("predict", "jem-avatars", "nowhere.png"), "nowhere.png"),
        (("evaluate", "jem-avatars", "--dataset", "./nowhere"), "nowhere"),
        (("evaluate", "jem-avatars", "--num-images", "1"), "num-images"),
        (("models", "jem-avatar"), "jem-avatars"),
        (("quickstart", "--max-steps", "0"), "max-steps"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, message, folder):
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1 or "Usage" in result.stderr
    assert not result.stdout and not list(folder.iterdir())


@pytest.mark.parametrize("command", [("generate", "no-such-model", "Hat"), ("edit", "no-such-model", "a.png", "Hat")])
@pytest.mark.parametrize(
    "output, message",
    [
        ("faces", "'faces' is no name of an image file: let it end in .png"),
        (".png", "let it end in .png"),
        ("faces.pgn", "let it end in .png"),
        ("faces.mpg", "let it end in .png"),  # PIL can read it only
        ("faces.xbm", "let it end in .png"),  # PIL can write it in black and white only
        (".", "'.' is a folder: name a file in it, such as 'grid.png'"),
        ("folder.png", "'folder.png' is a folder"),
        ("file.txt/faces.png", "cannot write into the folder 'file.txt'"),
        ("file.txt/more/faces.png", "cannot write into the folder 'file.txt/more'"),
        ("/proc/faces/faces.png", "cannot write into the folder '/proc/faces'"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_first(command, output, message, folder):
    """Before the model is looked for, which would be the next error."""
    (folder / "file.txt").touch()
    (folder / "folder.png").mkdir()
    result = CliRunner().invoke(app, [*command, "-o", output])
    assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "no-such-model", "--output"),
        ("quickstart", "--output"),
        ("train", "quickstart", "--name_or_path", "./nowhere", "--output_dir"),
    ],
)
@pytest.mark.parametrize("output", ["file.txt", "file.txt/run", "/proc/run"])
def test_a_folder_that_cannot_be_written_is_refused_first(command, output, folder):
    (folder / "file.txt").touch()
    result = CliRunner().invoke(app, [*command, output])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert f"cannot write into the folder {output!r}" in result.stderr

"""The house stays one that a reader can see through: short files, and walks that lead through what there is."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WALKS = re.split(r"\n(?=1\. )", (ROOT / "CONTRIBUTING.md").read_text().split("## Three walks")[1].split("\n## ")[0])[
    1:
]
STEP = re.compile(r"^\d\. `([\w/]+)\.py` `(\w+)`", re.MULTILINE)


def test_no_file_is_long():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "jem_hf").rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > 300} == {}


@pytest.mark.parametrize("walk", WALKS, ids=["request", "batch", "folder"])
def test_a_walk_leads_through_what_there_is(walk):
    steps = STEP.findall(walk)
    assert 3 <= len(steps) <= 8
    for file, name in steps:
        assert hasattr(importlib.import_module(file.replace("/", ".")), name), f"{file}.py has no {name}"

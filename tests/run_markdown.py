"""Runs the code of a Markdown file as a reader would, in the current folder: `python run_markdown.py FILE`.

Every Python block is a program of its own, every bash block stops at the first error; what they write stays. Left out
are blocks without a language, and those after a line `<!-- not run: why -->`.
"""

import multiprocessing
import re
import subprocess
import sys
from pathlib import Path

import torch
from transformers import Trainer, pipeline  # noqa: F401  here once, and not anew in the process of each block

BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n)?^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(text: str) -> list[tuple[int, str, str]]:
    """Line number, language and code of every block that is run."""
    found = []
    for match in BLOCK.finditer(text):
        skipped, language, code = match.groups()
        if language and not skipped:
            found.append((text.count("\n", 0, match.start(3)), language, code))
    return found


def run_python(code: str, line: int, path: str) -> None:
    """Run a block in a process that has imported torch and transformers, but none of their names, and no jem_hf."""
    compiled = compile("\n" * line + code, path, "exec")
    process = multiprocessing.get_context("fork").Process(target=exec, args=(compiled, {"__name__": "__main__"}))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{path}:{line + 1}: the block ended with {process.exitcode}")


def main(path: str) -> None:
    for line, language, code in blocks(Path(path).read_text()):
        print(f"{path}:{line + 1}: {language}", flush=True)
        if language == "python":
            run_python(code, line, path)
        elif language == "bash":
            subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True)
        else:
            raise ValueError(f"{path}:{line}: a block of {language!r} cannot be run")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1])

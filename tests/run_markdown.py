"""Runs the code of a Markdown file in order, as a reader would, in the current folder: `python run_markdown.py FILE`.

Python blocks share their names, bash blocks stop at the first error. Left out are blocks without a language, and those
after a line `<!-- not run: why -->`.
"""

import re
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"(<!-- not run: [^\n]+ -->\n)?^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(text: str) -> list[tuple[int, str, str]]:
    """Line number, language and code of every block that is run."""
    found = []
    for match in BLOCK.finditer(text):
        skipped, language, code = match.groups()
        if language and not skipped:
            found.append((text.count("\n", 0, match.start(3)), language, code))
    return found


def main(path: str) -> None:
    names = {"__name__": "__main__"}
    for line, language, code in blocks(Path(path).read_text()):
        print(f"{path}:{line + 1}: {language}", flush=True)
        if language == "python":
            exec(compile("\n" * line + code, path, "exec"), names)
        elif language == "bash":
            subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True)
        else:
            raise ValueError(f"{path}:{line}: a block of {language!r} cannot be run")


if __name__ == "__main__":
    main(sys.argv[1])

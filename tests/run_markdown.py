"""Runs the code of a Markdown file as a reader would, in the current folder: `python run_markdown.py FILE`.

Every Python block is a program of its own, every bash block stops at the first error; what they write stays. Left out
are blocks without a language, and those after a line `<!-- not run: why -->`. The script `jem-hf` of bash blocks, see
`COMMAND`, is run by processes that have imported it already: each would take seconds to do so.
"""

import atexit
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
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


COMMAND = f"""#!{sys.executable} -SE
import json, os, socket, sys, time
with socket.socket(socket.AF_UNIX) as server:
    for _ in range(600):
        try:
            server.connect(os.environ["JEM_HF_SERVER"])
            break
        except (FileNotFoundError, ConnectionRefusedError):  # it is still starting
            time.sleep(0.1)
    socket.send_fds(server, [json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()], [0, 1, 2])
    sys.exit(int(server.recv(9) or 1))
"""  # of the script `jem-hf`


def as_small(arguments: list[str]) -> list[str]:
    """A command with training, data and chains so small that a test can wait for them; the rest is as it was."""
    avatars = "--num_train 60 --num_test 20 --num_novel 20".split()
    small = {
        "train": [
            *"--max_steps 2 --per_device_train_batch_size 8 --bf16 false".split(),
            *"--eval_strategy no --save_strategy no".split(),
            *("--size", "{shortest_edge: 16}", "--crop_size", "{height: 16, width: 16}"),
            *("--backbone_kwargs", "{width: 4, hidden_size: 8}"),
            *(avatars if arguments[1:2] in (["quickstart"], ["jem-avatars"]) else []),
        ],
        "evaluate": [*"--num-images 8 --num-cas 0".split(), *(avatars if "avatars" in arguments else [])],
        "generate": ["--steps", "2"],
        "edit": ["--steps", "2"],
        "quickstart": "--max-steps 2 --num-train 40 --num-images 8".split(),
    }
    if arguments[0] == "train" and "--autoencoder" not in arguments:
        small["train"] += ["--autoencoder", "null"]
    return arguments + small.get(arguments[0], [])


def serve_commands(address: str) -> None:
    """Run the command line for each `COMMAND` that calls, in a process of its own."""
    from jem_hf.cli import app

    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen()
    while True:
        client, _ = server.accept()
        if not os.fork():
            run_command(app, client)
        client.close()


def run_command(app: Callable[[], None], client: socket.socket) -> None:
    """Run the command line with the arguments, the folder and the files of a `COMMAND`, and tell it how that ended."""
    content, files, *_ = socket.recv_fds(client, 1 << 20, 3)
    arguments, folder, environment = json.loads(content)
    sys.argv = ["jem-hf", *as_small(arguments)]
    for own, file in enumerate(files):
        os.dup2(file, own)
    os.chdir(folder)
    os.environ.update(environment)
    code = 1
    atexit.register(lambda: client.sendall(str(code).encode()))  # the first that is registered is the last to be done
    try:
        app()
    except SystemExit as error:
        code = error.code or 0
        raise


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
    folder = tempfile.mkdtemp()
    os.environ["JEM_HF_SERVER"] = f"{folder}/socket"
    server = os.fork()
    if not server:
        serve_commands(os.environ["JEM_HF_SERVER"])
    try:
        main(sys.argv[1])
    finally:
        os.kill(server, signal.SIGKILL)
        shutil.rmtree(folder)

"""Processes that begin where Python has imported what takes seconds: a server forks one for each that is asked for.

Libraries of Hugging Face, which read the environment when they are imported, are not there yet, unless they are named.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

HEAVY = (
    *("torch", "torch.distributed.tensor", "torch._dynamo", "torchvision.transforms.v2", "numpy", "PIL.Image"),
    *("pandas", "pyarrow.parquet", "matplotlib.figure", "scipy.stats", "scipy.optimize", "sklearn.metrics"),
    *("sklearn.linear_model", "yaml", "typer", "jinja2", "httpx", "fsspec", "dill"),
)
COMMAND = "from jem_hf.cli import app; app()"


def run(
    code: str, *arguments: str, cwd: str | Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """As `python -c code arguments` would end, by default in this folder and environment."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        ask = [code, ["-c", *arguments], str(cwd or Path.cwd()), dict(os.environ if env is None else env)]
        returncode = call(_own_server(), ask, [os.open(os.devnull, os.O_RDONLY), output.fileno(), errors.fileno()])
        output.seek(0), errors.seek(0)
        return subprocess.CompletedProcess([*ask[1]], returncode, output.read(), errors.read())


def call(address: str, ask: list, files: list[int]) -> int:
    """Have a server run code with arguments, folder, environment and standard files; how it ended, -9 if killed."""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        content = json.dumps(ask).encode()
        socket.send_fds(server, [len(content).to_bytes(8, "big")], files)
        server.sendall(content)
        return int(server.recv(9) or -signal.SIGKILL)


def write_command(path: Path, address: str | None = None, prepare: str = "") -> None:
    """A file that is `jem-hf`, run by a server, its own by default; `prepare` may change its arguments, `sys.argv`."""
    path.write_text(
        f"#!{sys.executable} -S\nimport os, sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
        f"from fresh_process import call\n{prepare}\n"
        f"ask = [{COMMAND!r}, sys.argv, os.getcwd(), dict(os.environ)]\n"
        f"sys.exit(call({address or _own_server()!r}, ask, [0, 1, 2]))\n"
    )
    path.chmod(0o755)


@contextlib.contextmanager
def fork_server(*modules: str, env: dict[str, str] | None = None) -> Iterator[str]:
    """The address of a server whose processes have imported these modules, in an environment."""
    folder = tempfile.mkdtemp()
    address = f"{folder}/socket"
    server = subprocess.Popen([sys.executable, __file__, address, *modules], env=env)
    try:
        while not os.path.exists(address):
            if server.poll() is not None:
                raise RuntimeError(f"the server of fresh processes ended with {server.returncode}")
            time.sleep(0.05)
        yield address
    finally:
        server.kill()
        shutil.rmtree(folder)


@cache
def _own_server() -> str:
    """That of this process, for as long as it lives."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(fork_server(*HEAVY))


def serve(address: str) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(f"{address}.new")
    server.listen()
    os.rename(f"{address}.new", address)  # now it can be called
    server.settimeout(1)
    parent = os.getppid()
    while os.getppid() == parent:
        with contextlib.suppress(TimeoutError):
            client, _ = server.accept()
            if not os.fork():
                return answer(client)
            client.close()


def answer(client: socket.socket) -> None:
    """Become the process that is asked for, and say at its end how it ended."""
    client.settimeout(None)
    size, files, *_ = socket.recv_fds(client, 8, 3)
    with client.makefile("rb") as content:
        code, sys.argv, folder, environment = json.loads(content.read(int.from_bytes(size, "big")))
    for own, file in enumerate(files):
        os.dup2(file, own)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = ["", *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    returncode = 1
    atexit.register(lambda: client.sendall(str(returncode).encode()))  # registered first, done last
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        returncode = 0
    except SystemExit as end:
        returncode = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file
    gc.disable()
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.freeze()  # a collection in a fork would copy the pages of all that has been imported
    gc.enable()
    serve(sys.argv[1])

"""What a user does at the Hub: a Python process or a command of its own, its environment set before any import."""

import json
import os

import fresh_process

WITHOUT_JEM_HF = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "jem_hf":
            raise ModuleNotFoundError("No module named 'jem_hf'")
sys.meta_path.insert(0, Refuse())
"""
HASH = """
import hashlib
def digest(images):
    return hashlib.sha256(b"".join(item["image"].tobytes() for item in images)).hexdigest()
"""


def environment(home, endpoint, token=None, offline=False):
    """Environment variables of a user whose cache is in `home` and whose Hub is at `endpoint`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "http", "HTTP"))}
    env |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    env |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    env |= {"HF_TOKEN": token} if token else {}
    return env | ({"HF_HUB_OFFLINE": "1"} if offline else {})


def python(script, cwd, env, without_jem_hf=False):
    """Run a script; returns the object that it leaves in `result`."""
    start = "import torch; torch.set_num_threads(1)\n" + (WITHOUT_JEM_HF if without_jem_hf else "") + HASH
    code = f"{start}\nresult = {{}}\n{script}\nimport json; print(json.dumps(result))"
    run = fresh_process.run(code, cwd=cwd, env=env)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def jem_hf(*args, cwd, env, code=0):
    """Run a command; returns the process."""
    run = fresh_process.run(fresh_process.COMMAND, *map(str, args), cwd=cwd, env=env)
    assert run.returncode == code, run.stderr[-3000:]
    return run

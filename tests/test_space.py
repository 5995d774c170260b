"""The page where it runs elsewhere: the files of a Space, their push, and what is asked for where gradio lacks."""

import socket
import subprocess
import sys
import time
import urllib.request

import fresh_process
import pytest
from hub_client import environment, jem_hf
from hub_server import HubServer
from huggingface_hub import ModelCard

from jem_hf import JemModel
from jem_hf.hub.space import write_space

pytestmark = pytest.mark.slow


def test_a_space_has_all_that_runs_the_page(tmp_path):
    """The Space of the bundled model, served from its own files by a Python that finds no jem_hf elsewhere."""
    write_space(JemModel.from_pretrained("jem-avatars"), tmp_path / "space", "faces")
    card = ModelCard.load(tmp_path / "space" / "README.md").data.to_dict()
    assert (card["sdk"], card["app_file"], card["license"]) == ("gradio", "app.py", "apache-2.0")
    requirements = (tmp_path / "space" / "requirements.txt").read_text()
    assert "torch" in requirements and "timm" in requirements and "pytest" not in requirements
    port = free_port()
    blocked = "accelerate datasets matplotlib scipy sklearn torchmetrics evaluate dicebear resvg_py".split()
    start = f"""
import runpy, sys
sys.path[0] = sys.argv[1]
for name in {blocked}: sys.modules[name] = None
sys.argv = [sys.argv[1] + "/app.py"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    env = environment(tmp_path / "home", "http://127.0.0.1:9", offline=True)
    env |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    command = [sys.executable, "-c", start, str(tmp_path / "space")]
    server = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert b"faces" not in wait_for(f"http://127.0.0.1:{port}/", server)
    finally:
        server.terminate()
        server.wait()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(url, server, seconds=900):
    for _ in range(10 * seconds):
        assert server.poll() is None, server.stdout.read().decode()
        try:
            return urllib.request.urlopen(url).read()
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(url)


def test_a_space_is_pushed(model, tmp_path):
    model.save_pretrained(tmp_path / "tiny")
    model.image_processor().save_pretrained(tmp_path / "tiny")
    with HubServer() as hub:
        env = environment(tmp_path / "home", hub.url, "hf_alice")
        jem_hf("push", tmp_path / "tiny", "page", "--space", "--private", cwd=tmp_path, env=env)
        files = hub.files("alice/page")
        assert {
            "app.py",
            "README.md",
            "requirements.txt",
            "model/model.safetensors",
            "jem_hf/hub/zoo.py",
        } <= files.keys()
        assert hub.repos["alice/page"].private


def test_the_page_asks_for_its_package():
    """Without gradio the command says what to install."""
    code = "import sys; sys.modules['gradio'] = None; from jem_hf.cli import app; app()"
    run = fresh_process.run(code, "demo")
    assert run.returncode == 2 and "pip install 'jem_hf[demo]'" in run.stderr and "Traceback" not in run.stderr

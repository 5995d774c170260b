"""The pipeline as a server uses it: from several threads, in little memory, and stopped midway."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
import torch
from transformers import pipeline

from jem_hf import JemConfig, JemModel

TASK = "attribute-conditional-generation"
CHAINS = [
    {"sampler": "flow", "free_attributes": "complete"},
    {"sampler": "flow", "free_attributes": "gibbs"},
    {"sampler": "langevin", "free_attributes": "gibbs"},
    {"sampler": "mala", "sampler_kwargs": {"step_size": 1e-3}, "free_attributes": "complete"},
    {
        "sampler": "mixed_hmc",
        "sampler_kwargs": {"step_size": 1e-3, "num_leapfrog": 1, "num_flips": 1},
        "free_attributes": "marginalise",
    },
]
NAMES = [f"{each['sampler']} {each['free_attributes']}" for each in CHAINS]


@pytest.fixture
def pipe(model):
    model.config.num_inference_steps = 2
    return pipeline(TASK, model=model)


def pixels(drawn):
    """Of one request, or of all those of a list."""
    items = drawn if isinstance(drawn[0], dict) else chain.from_iterable(drawn)
    return torch.stack([item["pixel_values"] for item in items])


def draw(pipe, seed, **arguments):
    return pixels(pipe("Smiling & (Hat | ~Hair=red)", num_images=3, seed=seed, return_tensors=True, **arguments))


@pytest.mark.parametrize("head", ["product", "pairwise"])
def test_eight_threads_draw_what_one_draws(config, head):
    config.head = head
    pipe = pipeline(TASK, model=JemModel(config).eval())
    alone = [draw(pipe, seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda seed: draw(pipe, seed), range(16)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together))
    assert len({x.sum().item() for x in alone}) == 16


def test_threads_with_other_chains_and_edits_do_not_meet(pipe):
    face = pipe("Hat", seed=0)[0]["image"]
    calls = [
        *({"requests": "Smiling", **settings} for settings in CHAINS),
        {"requests": "~Hat", "image": face},
        {"requests": "Smiling", "to": "~Smiling & Hat", "num_images": 3},
        {"requests": ["Smiling:2", "Hat"], "num_candidates": 3, "guidance_scale": 5.0},
    ] * 2

    def run(call):
        return pixels(pipe(seed=1, return_tensors=True, **call))

    alone = [run(call) for call in calls]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(run, calls))
    assert all(torch.equal(a, b) for a, b in zip(alone, together))


def test_drawing_disturbs_no_gradients(pipe, model):
    def accumulate():
        model.zero_grad()
        for i in range(30):
            x = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(i))
            model(x, torch.tensor([[1, 2, -1]] * 8)).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    alone, stop, drawn = accumulate(), threading.Event(), []

    def serve():
        while not stop.is_set():
            drawn.append(draw(pipe, seed=len(drawn), callback=lambda x, info: stop.is_set()))

    server = threading.Thread(target=serve)
    server.start()
    while not drawn:
        pass
    beside = accumulate()
    stop.set()
    server.join()
    assert alone.keys() == beside.keys() and all(torch.equal(alone[name], beside[name]) for name in alone)
    assert all(parameter.requires_grad for parameter in model.parameters()) and torch.is_grad_enabled()


@pytest.mark.parametrize("settings", CHAINS, ids=NAMES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_changes_no_image(pipe, settings, batch_size):
    def run(size):
        requests = ["Smiling", "~Hat & Hair=red"]
        drawn = pipe(
            requests, num_images=2, num_candidates=2, seed=3, batch_size=size, return_tensors=True, **settings
        )
        return pixels(drawn), [item["attributes"] for items in drawn for item in items]

    (x, attributes), (expected, expected_attributes) = run(batch_size), run(64)
    torch.testing.assert_close(x, expected, atol=1e-4, rtol=0)
    assert attributes == expected_attributes


def test_batch_size_changes_no_edit_and_no_path(pipe):
    face = pipe("Hat", seed=0)[0]["image"]
    for arguments in ({"image": face}, {"to": "~Smiling"}):
        pictures = [
            pixels(pipe("Smiling", num_images=5, seed=3, batch_size=size, return_tensors=True, **arguments))
            for size in (2, 64)
        ]
        torch.testing.assert_close(*pictures, atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", CHAINS, ids=NAMES)
def test_the_network_never_sees_more_than_a_batch(pipe, model, settings):
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    pipe(["Smiling", "Hat", "Hair=red"], num_images=7, batch_size=4, seed=0, **settings)
    assert max(seen) == 4 and sum(seen) >= 21 * 3


def test_batch_size_of_the_pipeline_holds_for_its_calls(model):
    seen = []
    model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    pipeline(TASK, model=model, batch_size=2)("Smiling", num_images=5)
    assert max(seen) == 2


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8"])
def test_wrong_batch_sizes(pipe, batch_size):
    with pytest.raises(ValueError, match="batch_size is a whole number"):
        pipe("Smiling", batch_size=batch_size)


@pytest.mark.parametrize("settings", CHAINS, ids=NAMES)
def test_a_chain_is_cancelled_from_another_thread(pipe, model, settings):
    """The drawing thread waits in step 2 until it was cancelled: no step follows, and what was drawn is returned."""
    reached, cancelled, steps = threading.Event(), threading.Event(), []

    def callback(x, info):
        steps.append(info.step)
        if info.step == 2:
            reached.set()
            assert cancelled.wait(60)
        return cancelled.is_set()

    with ThreadPoolExecutor(1) as threads:
        drawing = threads.submit(pipe, "Smiling", num_inference_steps=1000, callback=callback, seed=0, **settings)
        assert reached.wait(60)
        cancelled.set()
        (item,) = drawing.result()
    assert steps == [0, 1, 2] and item["image"].size == (8, 8)


def test_a_set_event_stops_every_chain_of_a_call_before_its_first_step(pipe):
    event, steps = threading.Event(), []
    event.set()
    callback = lambda x, info: steps.append(info.step) or event.is_set()  # noqa: E731
    pipe(["Smiling", "Hat"], num_images=3, batch_size=2, num_inference_steps=1000, callback=callback)
    assert steps == [0] * 4  # 2 and 1 images of each request


def fail_beyond(model, size, error):
    """From now on the network fails with more images than `size`; a list of the numbers that it gets."""
    seen = []

    def hook(module, inputs):
        seen.append(len(inputs[0]))
        if seen[-1] > size:
            raise error

    model.backbone.register_forward_pre_hook(hook)
    return seen


@pytest.mark.parametrize("settings", CHAINS, ids=NAMES)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_the_batch_is_halved_until_it_fits(pipe, model, settings, error):
    expected = pixels(pipe(["Smiling", "Hat"], num_images=5, seed=2, return_tensors=True, **settings))
    seen = fail_beyond(model, 3, error)
    found = pixels(pipe(["Smiling", "Hat"], num_images=5, seed=2, return_tensors=True, **settings))
    assert seen[0] in (5, 10) and set(seen) <= {10, 5, 2, 1}  # a request that draws along its chain has one of its own
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_one_image_that_does_not_fit_is_an_error_and_so_is_all_else(pipe, model):
    seen = fail_beyond(model, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        pipe("Smiling", num_images=8)
    assert seen == [8, 4, 2, 1]
    model.backbone._forward_pre_hooks.clear()
    seen = fail_beyond(model, 0, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        pipe("Smiling", num_images=8)
    assert seen == [8]


OUT_OF_MEMORY = """
import json, resource, sys
import torch
from transformers import pipeline
from jem_hf import JemModel

torch.set_num_threads(1)
torch.backends.mkldnn.enabled = False  # a library that does not survive it where its own few bytes are refused
model = JemModel.from_pretrained(sys.argv[1])
draw = pipeline("attribute-conditional-generation", model=model)
draw("Smiling", seed=0)  # libraries are loaded and threads are started
sizes, results = [], []
model.backbone.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
for room, arguments in json.loads(sys.argv[2]):
    sizes.clear()
    generator = torch.Generator().manual_seed(5)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
    drawn = draw("Smiling & ~Hat", num_images=32, generator=generator, return_tensors=True, **arguments)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    x = torch.stack([item["pixel_values"] for item in drawn])
    results.append({"sizes": list(sizes), "pixels": x.tolist(), "state": generator.get_state().tolist()})
print(json.dumps(results))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is set by what /proc says")
def test_out_of_memory_halves_the_batch(tmp_path):
    """In a process whose address space may grow by so many bytes; a batch of 32 takes about 40 MB."""
    torch.manual_seed(0)
    config = JemConfig(attributes=["Smiling", "Hat"], image_size=64, backbone_kwargs={"width": 16})
    config.num_inference_steps = 2
    model = JemModel(config).eval()
    model.save_pretrained(tmp_path, code=False)
    cases = [(20 << 20, {}), (20 << 20, {"sampler": "langevin", "free_attributes": "gibbs"})]
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(tmp_path), json.dumps(cases)]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "MALLOC_ARENA_MAX": "1"}
    env |= {"MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back
    run = subprocess.run(command, capture_output=True, text=True, env=env)
    assert run.returncode == 0, run.stderr[-2000:]
    for (_, settings), result in zip(cases, json.loads(run.stdout)):
        generator = torch.Generator().manual_seed(5)
        drawn = pipeline(TASK, model=model)(
            "Smiling & ~Hat", num_images=32, generator=generator, return_tensors=True, **settings
        )
        assert result["sizes"][0] == 32 and result["sizes"][-1] in (1, 2, 4, 8, 16), result["sizes"]
        torch.testing.assert_close(torch.tensor(result["pixels"]), pixels(drawn), atol=1e-4, rtol=0)
        assert result["state"] == generator.get_state().tolist()  # what failed has drawn nothing from it

"""The benchmarks: that they compare like with like, and that ours computes no more than the bare loop."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"
NAMES = ("flops", "measure", "plot", "run", "steps", "workloads")
FORWARD = 2 * 2 * (8 * 8 * 27 * 4 + 4 * 4 * 64 * 8 + 4 * 4 * 8 * 4 + 64 * 512 + 512 * 512 + 512 * 46)


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(FOLDER))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    sys.path.remove(str(FOLDER))
    for name in NAMES:
        del sys.modules[name]


@pytest.fixture
def tiny(scripts):
    return scripts.workloads.Setting(batch_size=2, image_size=8, width=4, num_steps=3)


def operations(scripts, function) -> int:
    with scripts.flops.FlopCounter() as counter:
        function()
    return counter.total


def test_a_step_of_the_chain_is_one_forward_and_one_gradient_by_the_images(scripts, tiny):
    """The same operations as the bare loop: the gradient costs what the forward pass costs, and nothing more."""
    contenders = scripts.workloads.chain(tiny)
    assert operations(scripts, contenders["bare"]) == operations(scripts, contenders["jem_hf"]) == 3 * 2 * FORWARD


def test_training_steps_have_no_other_operations_than_their_bare_parts(scripts, tiny):
    """
    With F operations forwards: 2 F a chain step and 3 F each for data and samples, where the first layer needs no
    gradient by the images; 6 F for the second order of the warm-up and 3 F for its cross-entropy.
    """
    first_layer, blur = 2 * 2 * 8 * 8 * 27 * 4, 2 * 2 * 8 * 8 * 25 * 3
    parts = 2 * (3 * FORWARD - first_layer)
    expected = {"contrastive_divergence": 3 * 2 * FORWARD + parts, "matching": 6 * FORWARD}
    expected["warm_up"] = 6 * FORWARD + 3 * FORWARD - first_layer
    for name, number in expected.items():
        contenders = scripts.workloads.WORKLOADS[name](tiny)
        assert operations(scripts, contenders["bare"]) == number
        assert operations(scripts, contenders["jem_hf"]) == number + blur * (name == "contrastive_divergence")


def test_pipeline_adds_one_forward_and_the_completion_of_the_request_to_the_chain(scripts, tiny):
    contenders = scripts.workloads.pipeline(tiny)
    request = torch.tensor([[1] + 22 * [-1]] * 2)
    completion = operations(scripts, lambda: tiny.model().label_prior.sample(request))
    added = operations(scripts, contenders["jem_hf"]) - operations(scripts, contenders["chain"])
    assert added == FORWARD + completion


def test_chains_need_no_gradient_of_parameters_and_leave_none(scripts, tiny):
    model = tiny.model()
    labels = torch.zeros(2, 23, dtype=torch.long)
    model.generate(labels, num_inference_steps=2)
    assert all(p.grad is None and p.requires_grad for p in model.parameters() if p.is_floating_point())


def test_evaluation_and_loading_run(scripts, tiny):
    for name in ("evaluation", "loading"):
        contenders = scripts.workloads.WORKLOADS[name](tiny)
        results = [function() for function in contenders.values()]
        assert len(results) == 2
    images, labels = results[0]
    assert images.shape == results[1]["pixel_values"].shape and labels.shape == results[1]["labels"].shape


def test_torchebm_sees_the_same_network(scripts, tiny):
    pytest.importorskip("torchebm")
    for name in ("chain", "contrastive_divergence", "matching"):
        contenders = scripts.workloads.WORKLOADS[name](tiny)
        contenders["torchebm"]()  # the first call makes its buffer
        assert operations(scripts, contenders["torchebm"]) == operations(scripts, contenders["bare"])


def test_contenders_take_turns_and_are_compared_within_a_round(scripts):
    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    results = scripts.measure.interleaved(contenders, seconds=0, min_rounds=4)
    assert "".join(calls) == "abc" + "abccba" * 2
    assert results["a"]["ratio"] == (1, 1, 1) and results["b"]["seconds"][0] > 0


def test_quartiles(scripts):
    assert scripts.measure.quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, 2.0, 4.0)


def test_peak_memory_is_what_a_call_holds_at_once(scripts):
    device = scripts.workloads.DEVICE

    def sums():
        for _ in range(3):
            torch.ones(2**20, device=device) + torch.ones(2**20, device=device)

    assert scripts.measure.peak_memory(lambda: torch.ones(16 * 2**20, device=device)) == 64
    assert scripts.measure.peak_memory(sums) == 12  # two and their sum
    assert scripts.measure.peak_memory(lambda: None) == 0


def test_table_and_figure(scripts, tiny, tmp_path):
    rates = {"float32": 1e11, "bfloat16": 1e11}
    result = scripts.run.measure("chain", tiny, 0, rates)
    bare = result["contenders"]["bare"]
    assert bare["matmul_share"] == pytest.approx(3 * 2 * FORWARD / bare["seconds"][0] / 1e11)
    line = scripts.run.table([result]).splitlines()[2]
    assert line.startswith("| chain | 2 | 8 | 4 | 3 | bare |") and "| 1.000 |" in line
    scripts.plot.plot([result], tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "workload", ["chain", "contrastive_divergence", "matching", "warm_up", "pipeline", "evaluation"]
)
def test_settings_cover_batches_pixels_and_widths(scripts, workload):
    settings = scripts.run.settings_of(workload, quick=False)
    for name, values in (("batch_size", {1, 256}), ("image_size", {32, 64}), ("width", {16, 32, 64})):
        assert {getattr(each, name) for each in settings} >= values
    assert all(1 <= each.num_steps <= 40 for each in settings)


def test_cheapest_is_within_an_error_of_the_best(scripts):
    def result(way, evaluations, agreement):
        point = {"evaluations": evaluations, "agreement": agreement, "standard_error": 0.01}
        return {"way": way, **dict.fromkeys(scripts.steps.KINDS, point)}

    results = [result("bad", 4, 0.90), result("good", 8, 0.942), result("same", 12, 0.945), result("best", 24, 0.95)]
    assert scripts.steps.cheapest(results)["way"] == "good"


def test_ways_of_descending_go_equally_far_in_equal_steps(scripts, tiny):
    """On a constant slope: the sum of the steps is the flow time, but for those who go farther or gain momentum."""
    from jem_hf.models.image_samplers_jem import flow

    for way, arguments in scripts.steps.WAYS.items():
        x, _ = flow(lambda x: x.sum(1), torch.zeros(1, 1), num_steps=200, **arguments(1.6 / 200))
        expected = 2.0 if way == "a quarter farther" else 1.6
        assert x.item() == pytest.approx(expected, rel=0.03), way


def test_evaluations_are_counted_and_early_stopping_saves_some(scripts, model):
    requests = torch.zeros(5, 3, dtype=torch.long)
    images, evaluations = scripts.steps.draw(model, requests, "plain", 4)
    assert evaluations == 4 and images.shape == (5, 3, 8, 8) and images.abs().max() <= 1
    assert scripts.steps.draw(model, requests, "ancestral, eta inf, reach 1.35", 4)[1] == 4
    assert scripts.steps.draw(model, requests, "stop at gradient .3", 4)[1] == 1  # an untrained energy is flat

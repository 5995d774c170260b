from itertools import product

import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForImageClassification, pipeline

from jem_hf import JemImageProcessor, JemModel, JemOutput


def brute_force(model, x):
    """log p~(x, y) of every label vector, from the logits alone."""
    logits = model(x).attribute_logits
    vectors = list(product(*(range(v) for v in model.config.num_values)))
    scores = torch.stack([sum(logits[:, k, v] for k, v in enumerate(vector)) for vector in vectors], dim=1)
    return torch.tensor(vectors), scores


def test_log_joint_marginal_and_posterior_match_enumeration(model):
    x = torch.rand(5, 3, 8, 8) * 2 - 1
    vectors, scores = brute_force(model, x)
    for i, vector in enumerate(vectors):
        torch.testing.assert_close(model.log_joint(x, vector.expand(5, -1)), scores[:, i])
    torch.testing.assert_close(model.log_marginal(x), scores.logsumexp(1))
    posterior = scores.softmax(1)
    probabilities = model.predict_proba(x)
    for k, num_values in enumerate(model.config.num_values):
        for v in range(num_values):
            torch.testing.assert_close(probabilities[:, k, v], posterior[:, vectors[:, k] == v].sum(1))
        assert (probabilities[:, k, num_values:] == 0).all()


def test_missing_labels_are_marginalised(model):
    x = torch.rand(4, 3, 8, 8)
    vectors, scores = brute_force(model, x)
    for observed in product([-1, 1], [-1, 2], [-1, 0]):
        labels = torch.tensor(observed)
        match = ((vectors == labels) | (labels < 0)).all(1)
        torch.testing.assert_close(model.log_joint(x, labels.expand(4, -1)), scores[:, match].logsumexp(1))


def test_forward_returns_loss_energy_and_log_odds(model):
    x, labels = torch.rand(3, 3, 8, 8), torch.tensor([[1, 2, 0], [-1, 0, 1], [0, -1, -1]])
    output = model(x, labels)
    assert isinstance(output, JemOutput)
    probabilities = model.predict_proba(x)
    present = (labels >= 0).nonzero()
    log_p = torch.stack([probabilities[i, k, labels[i, k]].log() for i, k in present.tolist()])
    torch.testing.assert_close(output.loss, -log_p.mean())
    torch.testing.assert_close(output.energy, -model.log_joint(x, labels))
    torch.testing.assert_close(model(x).energy, -model.log_marginal(x))
    expected = torch.cat([probabilities[:, 0, 1:2], probabilities[:, 1, :3], probabilities[:, 2, 1:2]], dim=1)
    torch.testing.assert_close(output.logits.sigmoid(), expected)


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.tensor([[0, 0, 2]]), "label 2 of image 0 is not a value of 'Hat'"),
        (torch.tensor([[0, -2, 1]]), "'Hair'"),
        (torch.tensor([[0, 0]]), "shape"),
        (torch.tensor([[0.0, 0.0, 1.0]]), "integers"),
    ],
)
def test_wrong_labels_are_refused(model, labels, message):
    with pytest.raises(ValueError, match=message):
        model(torch.rand(1, 3, 8, 8), labels)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (1, 1, 8, 8), (3, 8, 8)])
def test_wrong_images_are_refused(model, shape):
    with pytest.raises(ValueError, match="JemImageProcessor"):
        model(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float32, torch.bfloat16])
def test_pixels_that_were_not_scaled_are_refused_with_the_remedy(model, dtype):
    x = torch.arange(2 * 192).remainder(256).reshape(2, 3, 8, 8).to(dtype)
    labels = torch.tensor([[1, 0, 0]] * 2)
    for call in (
        lambda: model(x),
        lambda: model.predict_proba(x),
        lambda: model.log_joint(x, labels),
        lambda: model.log_marginal(x),
        lambda: model.generate(labels, noise=x),
        lambda: model.edit(x, labels),
        lambda: model.edit(x, labels, mask=torch.ones(2, 1, 8, 8, dtype=torch.bool)),
    ):
        with pytest.raises(ValueError, match=r"x / 127.5 - 1"):
            call()


def test_chains_may_leave_the_range_of_images(model):
    """What a chain meets on its way is no mistake: normal noise, and where a step too large has thrown it."""
    for x in (torch.randn(2, 3, 8, 8) * 3, torch.rand(2, 3, 8, 8), torch.ones(2, 3, 8, 8) + 0.01 * torch.randn(1)):
        assert model.log_marginal(x).isfinite().all()
    far = torch.rand(2, 3, 8, 8).mul(255).requires_grad_(True)
    assert model.log_marginal(far).isfinite().all()


def test_auto_classes_find_the_model(model, tmp_path):
    model.label_prior.fit(torch.tensor([[0, 1, 1], [1, 2, 0], [1, 2, 0]]))
    model.save_pretrained(tmp_path)
    for auto in (AutoModel, AutoModelForImageClassification):
        loaded = auto.from_pretrained(tmp_path)
        assert isinstance(loaded, JemModel)
        assert torch.equal(loaded.label_prior.weight, model.label_prior.weight)


def test_image_classification_pipeline_gives_calibrated_tags(model, tmp_path):
    model.save_pretrained(tmp_path)
    JemImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    image = Image.new("RGB", (20, 10), (200, 30, 60))
    tags = pipeline("image-classification", model=str(tmp_path))(image, top_k=10)
    x = JemImageProcessor.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    probabilities = model.predict_proba(x)[0]
    scores = {tag["label"]: tag["score"] for tag in tags}
    assert scores.keys() == {"Smiling", "Hair=black", "Hair=blond", "Hair=red", "Hat"}
    assert scores["Smiling"] == pytest.approx(probabilities[0, 1].item(), abs=1e-5)
    assert scores["Hair=red"] == pytest.approx(probabilities[1, 2].item(), abs=1e-5)


def test_generate_keeps_what_is_given_and_repeats_itself(model):
    labels = torch.tensor([[1, -1, 0], [-1, 2, -1]])
    for free_attributes in ("complete", "gibbs", "marginalise"):
        runs = [
            model.generate(labels, free_attributes=free_attributes, generator=torch.Generator().manual_seed(3))
            for _ in range(2)
        ]
        assert torch.equal(runs[0][0], runs[1][0])
        drawn = runs[0][1]
        assert (drawn[labels >= 0] == labels[labels >= 0]).all()
        assert (drawn >= 0).all() == (free_attributes != "marginalise")
    with pytest.raises(ValueError, match="did you mean 'gibbs'"):
        model.generate(labels, free_attributes="gibs")
    with pytest.raises(ValueError, match="num_inference_steps"):
        model.generate(labels, num_inference_steps=0)


def test_half_precision_weights_generate(model):
    x, _ = model.to(torch.bfloat16).generate(torch.tensor([[1, -1, 0]]), generator=torch.Generator().manual_seed(0))
    assert x.dtype == torch.float32 and torch.isfinite(x).all()


def test_loss_without_any_label_is_zero(model):
    assert model(torch.zeros(2, 3, 8, 8), torch.full((2, 3), -1)).loss == 0


@pytest.mark.parametrize("head", ["product", "pairwise", "dot", "mlp"])
def test_the_loss_trains_every_head(head, config):
    """As a plain `Trainer` uses it: its gradient reaches all weights, and steps along it lower it."""
    config.head = head
    torch.manual_seed(0)
    model = JemModel(config)
    x, labels = torch.rand(6, 3, 8, 8) * 2 - 1, torch.tensor([[1, 2, 0], [0, 1, -1], [-1, 0, 1]] * 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        losses.append(model(x, labels).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("label_prior"))
        optimizer.step()
    assert losses[-1] < losses[0] - 0.02

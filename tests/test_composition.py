"""Alternatives, weights, mixtures and edits: the energies that chains follow, and what the pipeline does with them."""

from itertools import pairwise, product

import pytest
import torch
from PIL import Image
from transformers import pipeline

from jem_hf import JemModel
from jem_hf.models import label_distributions_jem
from jem_hf.models.heads_jem import HEADS
from jem_hf.models.sampling_jem import NEVER, SAMPLERS, Condition

TASK = "attribute-conditional-generation"
SETTINGS = {  # what each sampler needs
    "langevin": {"step_size": 0.01, "noise_scale": 0.01},
    "unadjusted_langevin": {"step_size": 0.01},
    "mala": {"step_size": 0.01},
    "hmc": {"step_size": 0.1, "num_leapfrog": 2},
    "mixed_hmc": {"step_size": 0.1, "num_leapfrog": 2},
}


@pytest.fixture
def pipe(model):
    return pipeline(TASK, model=model)


@pytest.fixture
def x():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("head", HEADS)
def test_alternatives_are_the_sum_over_their_label_vectors(head, config, x):
    """`Smiling | Hat` as three alternatives, one of them given twice as NEVER, against enumeration."""
    config.head = head
    torch.manual_seed(0)
    model = JemModel(config).eval()
    vectors = torch.tensor(list(product(range(2), range(3), range(2))))
    scores = torch.stack([model.log_joint(x, each.expand(3, -1)) for each in vectors])
    labels = torch.tensor([[1, -1, -1], [0, -1, 1], [NEVER] * 3]).expand(3, -1, -1)
    expected = scores[(vectors[:, 0] == 1) | (vectors[:, 2] == 1)].logsumexp(0)
    distribution = model.label_distribution(x)
    torch.testing.assert_close(Condition(labels).log_joint(distribution), expected)
    guided = Condition(labels).guided(distribution, 3.0)
    torch.testing.assert_close(guided, 3 * expected - 2 * scores.logsumexp(0))
    best = Condition(labels).most_probable(distribution)
    first, second = (model.log_joint(x, labels[:, m]) for m in range(2))
    assert torch.equal(best, torch.where((first > second)[:, None], labels[:, 0], labels[:, 1]))


def test_weights_and_mixtures(model, x):
    distribution = model.label_distribution(x)
    labels = torch.tensor([[1, 2, -1]]).expand(3, -1)
    weights = torch.tensor([[2.0, 1.0, 7.0]]).expand(3, -1)
    log_p = distribution.logits.log_softmax(-1)
    expected = distribution.log_marginal() + 2 * log_p[:, 0, 1] + log_p[:, 1, 2]
    torch.testing.assert_close(Condition(labels, weights).log_joint(distribution), expected)
    shares = torch.tensor([0.0, 0.25, 1.0])
    mixed = model.mixture(labels, torch.tensor([[0, -1, -1]]).expand(3, -1), shares).log_joint(distribution)
    ends = distribution.log_joint(labels), distribution.log_joint(torch.tensor([[0, -1, -1]]).expand(3, -1))
    torch.testing.assert_close(mixed, torch.lerp(*ends, shares))


def test_weights_need_independent_labels(config, x):
    config.head = "pairwise"
    pipe = pipeline(TASK, model=JemModel(config).eval())
    with pytest.raises(ValueError, match="head 'product'"):
        pipe("Smiling:2")


def test_composed_requests(pipe, model):
    for item in pipe("(Smiling | Hat) & ~Hair=red", num_images=6, seed=0):
        seen = item["attributes"]
        assert seen["Hair"] != "red" and (seen["Smiling"] or seen["Hat"])
    item = pipe("Smiling | Hat", seed=0, return_tensors=True, free_attributes="marginalise")[0]
    x = item["pixel_values"][None]
    either = torch.stack([model.log_joint(x, torch.tensor([row])) for row in ([1, -1, -1], [0, -1, 1])]).logsumexp(0)
    assert item["energy"] == pytest.approx(-either.item(), abs=1e-4)
    heavy, light = (pipe(request, seed=0, return_tensors=True)[0]["pixel_values"] for request in ("Hat:9", "Hat"))
    assert not torch.equal(heavy, light)


def test_a_list_of_compositions_gives_what_each_gives_alone(pipe):
    requests = ["Smiling | Hat", "Hair=red", "~(Hat & Smiling)"]
    for request, items in zip(requests, pipe(requests, num_images=2, seed=1, batch_size=3)):
        alone = pipe(request, num_images=2, seed=1)
        assert [item["energy"] for item in items] == pytest.approx([item["energy"] for item in alone], abs=1e-4)


def test_candidates_are_ranked_by_energy_given_the_image(pipe):
    """-log p(y|x), which is that of one attribute here."""
    every = pipe("Smiling", num_images=12, seed=3)
    best = pipe("Smiling", num_images=3, num_candidates=4, seed=3)
    expected = sorted(every, key=lambda item: -item["probabilities"]["Smiling"])[:3]
    assert [item["energy"] for item in best] == pytest.approx([item["energy"] for item in expected], abs=1e-4)


def test_from_one_request_to_another(pipe):
    """The ends are what the requests give alone; the way between is made of small steps."""
    call = dict(seed=2, return_tensors=True, free_attributes="marginalise")
    way = [item["pixel_values"] for item in pipe("Smiling & Hat", to="~Smiling", num_images=9, **call)]
    torch.testing.assert_close(way[0], pipe("Smiling & Hat", **call)[0]["pixel_values"], atol=1e-5, rtol=0)
    torch.testing.assert_close(way[-1], pipe("~Smiling", **call)[0]["pixel_values"], atol=1e-5, rtol=0)
    whole = (way[-1] - way[0]).norm()
    assert whole > 0 and all((b - a).norm() < whole / 2 for a, b in pairwise(way))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_by_name(sampler, pipe):
    call = dict(seed=0, num_inference_steps=3, sampler=sampler, sampler_kwargs=SETTINGS.get(sampler))
    first, again = (pipe("Smiling & ~Hat", num_images=2, free_attributes="gibbs", **call) for _ in range(2))
    assert first[0]["energy"] == again[0]["energy"]
    assert first[0]["attributes"]["Smiling"] is True and first[0]["attributes"]["Hair"] is not None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"sampler": "hmcc"}, "did you mean 'hmc'"),
        ({"sampler": "mala"}, "needs step_size"),
        ({"sampler": "hmc", "sampler_kwargs": {"step": 1}}, "no argument 'step'"),
        ({"sampler": "flow", "sampler_kwargs": {"num_leapfrog": 1}}, "no argument 'num_leapfrog'"),
        ({"strength": 0.5}, "only with an image"),
        ({"image": Image.new("RGB", (8, 8)), "strength": 1.5}, "strength is above 0"),
        ({"image": Image.new("RGB", (8, 8)), "to": "Hat"}, "to goes with requests alone"),
        ({"num_candidates": 0}, "num_candidates"),
    ],
)
def test_bad_arguments(pipe, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe("Smiling", **arguments)


@pytest.mark.parametrize(
    "request_, arguments, message",
    [
        ("Smiling | Hat", {"free_attributes": "gibbs"}, "alternatives are not drawn"),
        ("Smiling | Hat", {"image": Image.new("RGB", (8, 8))}, "has several alternatives"),
        ("Smiling | Hat", {"to": "Hat"}, "has several alternatives"),
        ("Smiling | Hat", {"sampler": "mixed_hmc", "sampler_kwargs": {"step_size": 0.1}}, "neither alternatives nor"),
    ],
)
def test_what_compositions_cannot_do(pipe, request_, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe(request_, **arguments)


@pytest.mark.parametrize(("num_steps", "way"), [(1, 1.6), (2, 1.2)])
def test_an_edit_follows_its_energy(model, x, num_steps, way):
    """With one step left, the last of its chain, and no noise it is one step of the gradient of
    log p(x) + 32 log p(asked|x) + 2 log p(others as they are|x)."""
    labels = torch.tensor([[1, -1, -1]]).expand(3, -1)
    strength = 1e-6
    edited, aimed = model.edit(x, labels, strength=strength, num_inference_steps=num_steps)
    seen = model.predict_proba(x).argmax(-1)
    assert torch.equal(aimed[:, 1:], seen[:, 1:]) and (aimed[:, 0] == 1).all()
    y = x.clone().requires_grad_(True)
    distribution = model.label_distribution(y)
    log_p = distribution.logits.log_softmax(-1).gather(-1, aimed[..., None])[..., 0]
    objective = distribution.log_marginal() + 32 * log_p[:, 0] + 2 * log_p[:, 1:].sum(1)
    (gradient,) = torch.autograd.grad(objective.sum(), y)
    torch.testing.assert_close(edited, x + way * gradient, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("sampler", "strength", "masked", "num_steps", "expected"),
    [
        ("flow", 1.0, False, None, 24),
        ("flow", 0.5, False, None, 14),  # data is at 1 / 1.6 of the way: half of that is ten of the steps
        ("flow", 0.5, False, 8, 5),  # after the first three, .24 of the way: the later ones are longer
        ("flow", 1.0, True, None, 4),
        ("langevin", 1.0, False, None, 4),
        ("langevin", 0.5, False, None, 2),
    ],
)
def test_steps_of_an_edit(model, x, sampler, strength, masked, num_steps, expected):
    model.config.sampler = sampler
    labels, done = torch.tensor([[1, -1, -1]]).expand(3, -1), []
    model.edit(
        x,
        labels,
        strength=strength,
        mask=torch.ones(3, 1, 8, 8, dtype=torch.bool) if masked else None,
        num_inference_steps=num_steps,
        callback=lambda x, info: done.append(info.step),
    )
    assert len(done) == expected


@pytest.mark.parametrize("field", ["flow_time", "step_size"])
def test_in_painting_without_a_way_keeps_what_is_known(model, x, field):
    model.config.sampler = "flow" if field == "flow_time" else "langevin"
    setattr(model.config, field, 0.0)
    mask = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    torch.testing.assert_close(model.edit(x, torch.full((3, 3), -1), mask=mask)[0], x)


def test_in_painting_keeps_what_is_known(model, x):
    mask = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    mask[:, :, 2:6, 2:6] = True
    filled, _ = model.edit(x, torch.tensor([[1, -1, -1]]).expand(3, -1), mask=mask)
    known = ~mask.expand_as(x)
    torch.testing.assert_close(filled[known], x[known])
    assert (filled[~known] - x[~known]).abs().mean() > 0.05


NOISY = pytest.mark.parametrize(
    "noisy", [dict(flow_temperature=0.5, flow_time=3.2), dict(sampler="ancestral")], ids=["temperature", "ancestral"]
)


@NOISY
def test_noise_along_a_flow_is_for_drawing_and_no_edit_goes_astray_by_it(noisy, model, x):
    """Same start: chains with noise part, and by the same seed they do not; a flow's edits are those of a cold one."""
    asked, start = torch.tensor([[1, -1, 0]]).expand(3, -1), torch.randn(3, 3, 8, 8)

    def drawn(seed):
        return model.generate(asked, noise=start, generator=torch.Generator().manual_seed(seed))[0]

    def edited():
        return model.edit(x, asked, noise=start, generator=torch.Generator().manual_seed(0))[0]

    model.config.free_attributes = "marginalise"
    assert torch.equal(drawn(0), drawn(1))
    cold = edited()
    model.config.update(noisy)
    assert torch.equal(drawn(0), drawn(0)) and not torch.allclose(drawn(0), drawn(1), atol=0.05)
    if model.config.sampler == "flow":
        torch.testing.assert_close(edited(), cold)


@pytest.mark.parametrize("hold_scale", [None, 0.0])
def test_an_edit_by_replay_changes_nothing_but_for_what_is_asked(hold_scale, model, x):
    model.config.sampler = "ancestral"
    settings = dict(noise=torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)), hold_scale=hold_scale)
    seen = model.predict_proba(x).argmax(-1)
    nothing, as_it_is = torch.full((3, 3), -1), seen.clone()
    as_it_is[:, 1:] = -1
    torch.testing.assert_close(model.edit(x, nothing, **settings)[0], x, atol=1e-4, rtol=0)
    other = as_it_is.clone()
    other[:, 0] = 1 - other[:, 0]
    edited, labels = model.edit(x, other, **settings)
    assert (labels[:, 0] == other[:, 0]).all()

    def asked(images):
        return model.predict_proba(images)[range(3), 0, other[:, 0]]

    assert (asked(edited) > asked(x)).all() and not torch.allclose(edited, x, atol=1e-3)
    again = model.edit(x[1:], other[1:], **settings | {"noise": settings["noise"][1:]})[0]
    torch.testing.assert_close(again, edited[1:], atol=1e-4, rtol=1e-4)  # whatever else is edited beside it


@NOISY
def test_noise_along_a_flow_leaves_every_image_to_its_seed(noisy, pipe, model):
    """Whatever else is drawn beside it; and from one noise to one request lead images that are all the same."""
    model.config.update(noisy)
    settings = dict(num_images=3, seed=4, return_tensors=True, free_attributes="marginalise")

    def drawn(requests, **more):
        items = pipe(requests, **settings | more)
        return torch.stack([item["pixel_values"] for each in items for item in each])

    both = drawn(["Smiling", "~Smiling"])
    torch.testing.assert_close(drawn(["Smiling", "~Smiling"]), both)
    torch.testing.assert_close(drawn(["Smiling", "~Smiling"], batch_size=2), both)
    torch.testing.assert_close(drawn(["~Smiling"]), both[3:])
    between = drawn(["Smiling"], to="Smiling")
    torch.testing.assert_close(between, between[:1].expand_as(between))
    model.config.update(dict(sampler="flow", flow_temperature=0.0))
    assert not torch.allclose(drawn(["Smiling", "~Smiling"]), both, atol=0.05)


def test_edits_by_the_pipeline(pipe, model):
    image = Image.effect_noise((8, 8), 90).convert("RGB")
    edited = pipe(["Smiling", "~Smiling"], image=image, num_images=2, seed=0)
    assert [len(items) for items in edited] == [2, 2]
    seen = model.predict_proba(pipe._pixels(image)).argmax(-1)[0]
    for items, wanted in zip(edited, (True, False)):
        assert items[0]["attributes"]["Smiling"] is wanted and items[0]["attributes"]["Hat"] is bool(seen[2])
    larger = image.resize((20, 30))
    assert pipe("Smiling", image=larger, strength=0.3, seed=0)[0]["image"].size == (8, 8)
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 8, 4))
    filled = pipe("Smiling", image=image, mask=mask, seed=0)[0]["image"]
    assert filled.crop((0, 4, 8, 8)).tobytes() == image.crop((0, 4, 8, 8)).tobytes()


def test_known_labels_complete_the_others(config, x):
    """p(y_k | x, y_O): with interactions what is known changes what is not; enumeration says how."""
    config.head = "pairwise"
    torch.manual_seed(0)
    model = JemModel(config).eval()
    torch.nn.init.normal_(model.head.interaction)
    given = torch.tensor([[1, -1, -1]]).expand(3, -1)
    conditional = model.predict_proba(x, given)
    joint = torch.stack([model.log_joint(x, torch.tensor([[1, -1, hat]]).expand(3, -1)) for hat in (0, 1)], dim=1)
    torch.testing.assert_close(conditional[:, 2, :2], joint.softmax(1))
    assert (conditional[:, 0, 1] == 1).all()
    assert not torch.allclose(conditional[:, 2], model.predict_proba(x)[:, 2], atol=1e-3)


def test_an_edit_is_the_end_of_its_chain(model):
    """Step sizes and projections of the steps left are those of the whole chain's last ones."""
    whole = model.chain_settings(8)
    sizes = [whole["step_size"](step / 7) for step in range(8)]
    for strength, left in ((1.0, 8), (0.5, 5), (0.01, 3)):
        settings = model.edit_settings(strength, masked=False, num_steps=8)
        assert settings["num_steps"] == left
        assert [settings["step_size"](step / (left - 1)) for step in range(left)] == pytest.approx(sizes[-left:])


def test_the_config_s_langevin_is_the_same_with_its_numbers_given(model):
    """And so it is clamped either way."""
    model.config.sampler, labels = "langevin", torch.tensor([[1, -1, -1]]).expand(3, -1)
    given = {"step_size": model.config.step_size, "noise_scale": model.config.noise_scale}
    first, second = (
        model.generate(labels, sampler_kwargs=kwargs, generator=torch.Generator().manual_seed(0))[0]
        for kwargs in (None, given)
    )
    assert torch.equal(first, second) and first.abs().max() <= 1


@pytest.mark.parametrize("head", ["pairwise", "dot", "mlp"])
def test_label_samplers_by_name(config, head):
    """Where labels interact, both samplers meet what is asked and draw the rest; chains of one seed differ."""
    config.head, config.label_sampler = head, "gibbs_with_gradients"
    torch.manual_seed(0)
    model = JemModel(config).eval()
    labels, drawn = torch.tensor([[1, -1, -1]]).expand(40, -1), {}
    for name in ("gibbs", "gibbs_with_gradients"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(label_distributions_jem, "MAX_ENUMERATED", 1)
            generator = torch.Generator().manual_seed(0)
            _, drawn[name] = model.generate(
                labels, free_attributes="gibbs", label_sampler=name, num_inference_steps=2, generator=generator
            )
        assert (drawn[name][:, 0] == 1).all() and len(drawn[name][:, 1].unique()) == 3
    assert not torch.equal(*drawn.values())
    with pytest.raises(ValueError, match="unknown label_sampler 'gips'"):
        model.generate(labels, label_sampler="gips")

"""Attributes added to a trained model, taken from it, and learnt by fine-tuning."""

from itertools import product

import pytest
import torch
from transformers import pipeline

from jem_hf import (
    AttributeStream,
    AttributeTensors,
    JemConfig,
    JemImageProcessor,
    JemModel,
    JemTrainer,
    JemTrainingArguments,
)
from jem_hf.models.heads_jem import HEADS, cross_entropy
from jem_hf.models.image_processing_jem import to_pixels
from jem_hf.models.label_prior_jem import PairwiseLabelPrior
from jem_hf.models.resizing_jem import NEW_VALUE
from jem_hf.training.fine_tuning import Teacher, load_resized, unite_attributes
from jem_hf.training.recipes import load_recipe, make_trainer, train

X = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(7)) * 2 - 1
MORE = ["Hat", "Beard", "Smiling", "Mood", "Hair"]
MOOD = {"Mood": ["sad", "calm", "glad", "wild"]}


@pytest.fixture(params=HEADS)
def model(request, config):
    """A model whose every label matters, and so does its label prior."""
    config.head = request.param
    config.novel_combinations = [{"Hat": True, "Hair": "red"}, {"Smiling": True, "Hat": True}]
    torch.manual_seed(0)
    model = JemModel(config).eval()
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=2 / parameter.shape[-1] ** 0.5)
    between = 1 - torch.block_diag(*(torch.ones(v, v) for v in config.num_values))
    weight = torch.randn(7, 7) * between
    model.label_prior.weight.copy_((weight + weight.T) / 2)
    model.label_prior.bias.copy_(torch.randn(7))
    return model


def table(model, attributes, values, x=X):
    """`log p~(x, y_O)` (N, B) of every combination of values of some attributes, in their order."""
    config = model.config
    rows = []
    for combination in product(*values):
        labels = torch.full((len(x), len(config.attributes)), -1)
        for name, value in zip(attributes, combination):
            labels[:, config.attributes.index(name)] = config.values(name).index(value)
        rows.append(model.log_joint(x, labels))
    return torch.stack(rows).detach()


def old_table(model):
    return table(model, ["Smiling", "Hair", "Hat"], [["False", "True"], ["black", "blond", "red"], ["False", "True"]])


def predictions(model, x=X):
    """`p(y_k = v | x)` by attribute and value."""
    probabilities = model.predict_proba(x).detach()
    return {
        (name, value): probabilities[:, k, v]
        for k, name in enumerate(model.config.attributes)
        for v, value in enumerate(model.config.values(name))
    }


def test_new_attributes_change_the_energy_by_a_constant_only(model):
    before, predicted, state = old_table(model), predictions(model), torch.get_rng_state()
    assert model.resize_attributes(MORE, MOOD) is model
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(old_table(model), before + torch.tensor(8.0).log())
    after = predictions(model)
    for place, probability in predicted.items():
        torch.testing.assert_close(after[place], probability)
    torch.testing.assert_close(after["Beard", "True"], torch.full((5,), 1 / 2))
    torch.testing.assert_close(after["Mood", "wild"], torch.full((5,), 1 / 4))
    observed = table(model, ["Beard", "Mood"], [["False", "True"], MOOD["Mood"]])
    assert (observed - observed[0]).abs().max() < 1e-5


def test_what_is_added_and_dropped_again_leaves_no_trace(model):
    before, predicted, prior = old_table(model), predictions(model), model.label_prior
    model.resize_attributes(MORE, MOOD).resize_attributes(["Smiling", "Hair", "Hat"])
    assert torch.equal(old_table(model), before)
    assert all(torch.equal(predictions(model)[place], probability) for place, probability in predicted.items())
    assert torch.equal(model.label_prior.weight, prior.weight) and torch.equal(model.label_prior.bias, prior.bias)


def test_images_drawn_for_old_attributes_stay(model):
    noise = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    requests = [{"Smiling": 1}, {"Hair": 2, "Hat": 0}, {}]

    def draw():
        names = model.config.attributes
        labels = torch.tensor([[request.get(name, -1) for name in names] for request in requests])
        return model.generate(labels, noise=noise, free_attributes="marginalise", guidance_scale=3.0)[0]

    before = draw()
    model.resize_attributes(MORE, MOOD)
    torch.testing.assert_close(draw(), before, atol=1e-5, rtol=1e-5)


def test_a_dropped_attribute_stands_at_the_mean_of_its_values(model):
    """Up to a term of the image alone, which the labels that stay do not see."""
    labels = torch.tensor(list(product(range(2), range(3))))
    encoded = torch.zeros(6, 5, 3, 3)
    for row, (smiling, hair) in enumerate(labels):
        encoded[row, :, 0, smiling] = encoded[row, :, 1, hair] = 1
    encoded[:, :, 2, :2] = 1 / 2
    expected = model.head.score(model.potentials(X), encoded).detach()
    model.resize_attributes(["Hair", "Smiling"])
    difference = table(model, ["Smiling", "Hair"], [["False", "True"], ["black", "blond", "red"]]) - expected
    assert (difference - difference[0]).abs().max() < 1e-5
    assert model.label_prior.num_values == [3, 2]


def test_a_new_value_starts_below_a_bound_that_holds_for_every_image(model):
    before = old_table(model)
    of_hair = before.view(2, 3, 2, 5)
    model.resize_attributes(["Smiling", "Hair", "Hat"], {"Hair": ["grey", "red", "blond", "black"]})
    torch.testing.assert_close(old_table(model), before)  # observed labels: nothing has changed
    new = table(model, ["Smiling", "Hair", "Hat"], [["False", "True"], ["grey"], ["False", "True"]])
    if model.config.head in ("product", "pairwise"):
        torch.testing.assert_close(new.view(2, 2, 5), of_hair.mean(1) + NEW_VALUE)
        assert (predictions(model)["Hair", "grey"] < torch.tensor(NEW_VALUE).exp() / 3).all()
        assert ((model.log_marginal(X) - before.logsumexp(0)) < 1e-2).all()


def test_a_value_that_is_dropped_is_ruled_out(model):
    of_hair = old_table(model).view(2, 3, 2, 5)
    model.resize_attributes(["Smiling", "Hair", "Hat"], {"Hair": ["red", "black"]})
    posterior = of_hair[:, [2, 0]].logsumexp((0, 2)).softmax(0)
    torch.testing.assert_close(predictions(model)["Hair", "red"], posterior[0])


def prior_table(prior):
    one_hot = prior._one_hot(torch.tensor(list(product(*map(range, prior.num_values)))))
    return (one_hot @ prior.bias + 0.5 * (one_hot @ prior.weight * one_hot).sum(1)).view(prior.num_values)


def test_the_label_prior_keeps_what_it_knows(model):
    before = prior_table(model.label_prior)  # Smiling, Hair, Hat
    model.resize_attributes(MORE, MOOD)
    after = prior_table(model.label_prior)  # Hat, Beard, Smiling, Mood, Hair
    torch.testing.assert_close(after, before.permute(2, 0, 1)[:, None, :, None].expand_as(after))
    model.resize_attributes(["Hair", "Hat", "Smiling"], {"Hair": ["red", "grey", "black", "blond"]})
    after = prior_table(model.label_prior)
    torch.testing.assert_close(after[[2, 3, 0]], before.permute(1, 2, 0))
    torch.testing.assert_close(after[1], before.mean(1).T + NEW_VALUE)


def test_config_and_weights_survive_saving(model, tmp_path):
    model.to(torch.bfloat16).train().resize_attributes(["Hat", "Hair", "Beard"])
    assert model.head.training and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in model.parameters())
    model.eval().save_pretrained(tmp_path)
    loaded = JemModel.from_pretrained(tmp_path)
    config = loaded.config
    assert config.attributes == ["Hat", "Hair", "Beard"] and config.num_values == [2, 3, 2]
    assert list(config.id2label.values()) == ["Hat", "Hair=black", "Hair=blond", "Hair=red", "Beard"]
    assert config.label2id["Beard"] == 4
    assert config.novel_combinations == [{"Hat": True, "Hair": "red"}]
    torch.testing.assert_close(loaded(X).energy, model(X).energy)
    model.resize_attributes(["Hat", "Hair"], {"Hair": ["black", "blond"]})
    assert model.config.novel_combinations == []


def test_a_pipeline_takes_the_new_attribute(model):
    model.resize_attributes(["Smiling", "Hair", "Hat", "Mood"], MOOD)
    item = pipeline("attribute-conditional-generation", model=model)("Smiling & Mood=glad", seed=0)[0]
    assert item["attributes"]["Mood"] == "glad" and item["attributes"]["Hat"] in (True, False)
    assert item["probabilities"]["Mood"]["wild"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    "attributes, values, message",
    [
        (["Hat", "Hat"], None, "duplicate attribute 'Hat'"),
        ([], None, "at least one attribute"),
        (["Hat"], {"Mod": ["a", "b"]}, "unknown attribute 'Mod'"),
        (["Hat", "Mood"], {"Mood": ["sad"]}, "two different values"),
        (["Hat"], {"Hat": ["cap", "fez"]}, "'Hat' keeps none of its values"),
    ],
)
def test_wrong_attributes_leave_the_model_as_it_was(config, attributes, values, message):
    model = JemModel(config)
    before, state = model.config.to_dict(), model.state_dict()
    with pytest.raises(ValueError, match=message):
        model.resize_attributes(attributes, values)
    assert model.config.to_dict() == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# Fine-tuning


@pytest.fixture(scope="module")
def data():
    """256 images: "Bright" is their brightness, more or less, "Tint" is a blue or a red part of the picture."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (256, 2), generator=generator)
    images = torch.randn(256, 3, 8, 8, generator=generator) * 25 + 128
    images += ((labels[:, 0] - 0.5) * 25 + torch.randn(256, generator=generator) * 10)[:, None, None, None]
    images[:, :, :4] += (labels[:, 1, None] - 0.5).mul(torch.tensor([120.0, 0.0, -120.0]))[:, :, None, None]
    return AttributeTensors(images.clamp(0, 255).to(torch.uint8), labels, ["Bright", "Tint"])


def only(data, name):
    k = data.attributes.index(name)
    return AttributeTensors(data.images, data.labels[:, [k]], [name])


def arguments(folder, **kwargs):
    defaults = dict(max_steps=100, learning_rate=2e-2, per_device_train_batch_size=32, ema_decay=0.9)
    fixed = dict(save_strategy="no", disable_tqdm=True, use_cpu=True, sample_grid=0, logging_steps=50, seed=1)
    return JemTrainingArguments(str(folder), **(fixed | defaults | kwargs))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """The folder of a model that knows "Bright"."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("trained")
    config = JemConfig(attributes=["Bright"], backbone_kwargs={"width": 8, "hidden_size": 16}, image_size=8)
    processor = JemImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    train_dataset = only(data, "Bright")
    trainer = JemTrainer(JemModel(config), arguments(folder), train_dataset=train_dataset, processing_class=processor)
    trainer.train()
    trainer.save_model()
    return folder


def fine_tune(trained, data, folder, teacher, resume=None, **kwargs):
    """The trainer, after training on labels of "Tint" alone."""
    splits, values = unite_attributes({"train": only(data, "Tint")}, {}, JemConfig.from_pretrained(trained))
    model = load_resized(trained, splits["train"], values, [])
    args = arguments(folder, teacher=str(teacher), **kwargs)
    trainer = JemTrainer(model, args, train_dataset=splits["train"])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def outcome(trainer, trained, data):
    """Accuracy (2,), and KL divergence of the predictions of "Bright" from those before."""
    x, old = to_pixels(data.images), JemModel.from_pretrained(trained)
    with torch.no_grad():
        before, after = old.predict_proba(x)[:, 0], trainer.ema.module.predict_proba(x)
    moved = (before * (before.log() - after[:, 0].log())).sum(-1).mean()
    return (after.argmax(-1) == data.labels).float().mean(0), moved


CHAINS = dict(chain_steps=4, chain_step_size=0.1, chain_start="noised_data", buffer_size=32, energy_penalty=0.01)
OBJECTIVES = {
    "warmup": {},
    "classifier": {},
    "joint_cd": dict(cd_weight=0.02, warmup_weight=1.0, **CHAINS),
    "jem": CHAINS,
}


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_new_attribute_is_learnt_and_the_teacher_keeps_the_old_one(trained, data, tmp_path, objective):
    settings = {"objective": objective, **OBJECTIVES[objective]}
    alone = fine_tune(trained, data, tmp_path / "alone", "", **settings)
    with_teacher = fine_tune(trained, data, tmp_path / "kept", trained, **settings)
    (accuracy, moved), (kept_accuracy, kept) = (outcome(each, trained, data) for each in (alone, with_teacher))
    assert accuracy[1] > 0.95 and kept_accuracy[1] > 0.95
    assert kept < 0.1 and moved > 10 * kept
    assert kept_accuracy[0] > 0.85 > accuracy[0]


def test_the_label_prior_learns_from_the_teacher(trained, data, tmp_path):
    """It has one attribute of the data and one of the teacher, whose labels of "Bright" are as frequent as it says."""
    alone = fine_tune(trained, data, tmp_path, "", max_steps=1)
    trainer = fine_tune(trained, data, tmp_path, trained, max_steps=1)
    labels = trainer.teacher.label(trainer.train_dataset)
    assert torch.equal(labels, trainer.teacher.label(trainer.train_dataset))
    assert torch.equal(labels[:, 1], data.labels[:, 1])
    p = JemModel.from_pretrained(trained).predict_proba(to_pixels(data.images))[:, 0, 1].detach()
    assert abs(labels[:, 0].float().mean() - p.mean()) < 4 * (p * (1 - p)).sum().sqrt() / len(p)
    expected = PairwiseLabelPrior([2, 2]).fit(labels)
    for model in (trainer.model, trainer.ema.module):
        assert torch.equal(model.label_prior.weight, expected.weight)
    assert expected.bias[:2].abs().sum() > 0 == alone.model.label_prior.bias[:2].abs().sum()


def test_fine_tuning_resumes_exactly(trained, data, tmp_path):
    """From the checkpoint of step 4, through the change from warm-up to chains: the same bits at step 6."""
    settings = dict(objective="joint_cd", chain_free_steps=3, max_steps=6, **CHAINS)
    settings |= dict(save_strategy="steps", save_steps=4)
    whole = fine_tune(trained, data, tmp_path / "whole", trained, **settings)
    resumed = fine_tune(
        trained, data, tmp_path / "resumed", trained, resume=str(tmp_path / "whole" / "checkpoint-4"), **settings
    )
    for name, value in whole.ema.state_dict().items():
        assert torch.equal(value, resumed.ema.state_dict()[name]), name
    assert torch.equal(whole.generator.get_state(), resumed.generator.get_state())


def test_a_teacher_knows_something(model):
    stranger = JemConfig(attributes=["Beard"], image_size=8)
    with pytest.raises(ValueError, match="knows none of Beard"):
        Teacher(model, stranger)


def test_labels_of_the_teacher_are_its_predictions_on_average(model):
    """The cross-entropy with labels drawn 4,000 times is the one with p(y|x), within five standard errors."""
    student = JemModel(model.config).resize_attributes(["Hat", "Beard", "Smiling", "Hair"])
    teacher = Teacher(model, student.config)
    labels = torch.tensor([[-1, 1, -1, 2]])
    x = X[:1].expand(4000, -1, -1, -1)
    drawn = teacher.complete(x, labels.expand(4000, -1), torch.Generator().manual_seed(0))
    assert (drawn[:, [1, 3]] == labels[0, [1, 3]]).all() and (drawn >= 0).all()
    assert (teacher.complete(X, torch.full((5, 4), -1))[:, 1] == -1).all()  # of Beard it knows nothing
    posterior = table(model, ["Hat", "Smiling", "Hair"], [["False", "True"], ["False", "True"], ["red"]], X[:1])
    posterior = posterior.softmax(0).view(2, 2)
    logits = student.predict_proba(X[:1]).log().detach()
    expected = -(posterior.sum(1) * logits[0, 0, :2]).sum() - (posterior.sum(0) * logits[0, 2, :2]).sum()
    losses = torch.stack([cross_entropy(logits[:, [0, 2]], each[None, [0, 2]]) for each in drawn]) * 2
    assert abs(losses.mean() - expected) < 5 * losses.std() / 4000**0.5 + 1e-4


def test_data_and_model_are_united(config, tensors):
    data = AttributeTensors(tensors.images, tensors.labels[:, [1, 0]], ["Hair", "Beard"])
    splits, values = unite_attributes({"test": data}, {"Hair": ["red", "grey", "black"]}, config)
    assert splits["test"].attributes == ["Smiling", "Hair", "Hat", "Beard"]
    assert torch.equal(splits["test"].labels[:, [1, 3]], data.labels)
    assert (splits["test"].labels[:, [0, 2]] == -1).all()
    assert values == {"Hair": ["red", "grey", "black", "blond"]}
    with pytest.raises(ValueError, match="'Hair' has the values"):
        unite_attributes({"test": data}, {}, config)
    with pytest.raises(ValueError, match="streaming"):
        unite_attributes({"train": AttributeStream.__new__(AttributeStream)}, {}, config)


def test_a_recipe_goes_on_from_a_trained_model(trained, data, tmp_path):
    """A folder of images with one new attribute; the recipe's network and image size give way to the model's."""
    photos = tmp_path / "photos"
    photos.mkdir()
    rows = ["file_name,Tint"]
    for i in range(20):
        JemImageProcessor.to_pil(to_pixels(data.images[i : i + 1]))[0].save(photos / f"{i}.png")
        rows.append(f"{i}.png,{['no', 'yes'][data.labels[i, 1]]}")
    (photos / "metadata.csv").write_text("\n".join(rows))
    overrides = {
        "from_pretrained": str(trained), "name_or_path": str(photos), "cache_dir": str(tmp_path / "cache"),
        "output_dir": str(tmp_path / "run"), "max_steps": "2", "eval_steps": "2", "per_device_train_batch_size": "8",
        "guidance_scale": "3",
    }  # fmt: skip
    trainer, splits = train(load_recipe("own-data", overrides))
    assert trainer.args.teacher == str(trained) and trainer.teacher.known.tolist() == [True, False]
    model = JemModel.from_pretrained(tmp_path / "run")
    assert model.config.attributes == splits["test"].attributes == ["Bright", "Tint"]
    assert (model.config.image_size, model.config.backbone_kwargs["width"], model.config.guidance_scale) == (8, 8, 3)
    assert (splits["train"].labels[:, 0] == -1).all() and (splits["train"].labels[:, 1] >= 0).all()
    old = JemModel.from_pretrained(trained)
    moved = model.backbone.mlp[1].weight - old.backbone.mlp[1].weight
    assert 0 < moved.norm() < 0.1 * old.backbone.mlp[1].weight.norm()
    assert JemImageProcessor.from_pretrained(tmp_path / "run").crop_size.height == 8
    card = (tmp_path / "run" / "README.md").read_text()
    assert f"Fine-tuned from `{trained.name}`: `jem-hf train own-data`." in card and str(trained) not in card


def test_the_teacher_of_a_recipe(trained, data, tmp_path):
    """The trained model, where labels are missing and unless the recipe says otherwise."""

    def teacher(rows, **overrides):
        overrides |= {"from_pretrained": str(trained), "output_dir": str(tmp_path), "eval_strategy": "no"}
        return make_trainer(load_recipe("own-data", overrides), {"train": rows}, {}).args.teacher

    incomplete = AttributeTensors(data.images, data.labels.where(data.labels > 0, -1), data.attributes)
    assert teacher(incomplete) == str(trained)
    assert teacher(incomplete, teacher="") == teacher(data) == ""

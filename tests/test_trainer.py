import json

import pytest
import torch
from PIL import Image

from jem_hf import JemModel, JemTrainer, JemTrainingArguments
from jem_hf.training import averaging
from jem_hf.training.negatives import frozen
from jem_hf.training.objectives import contrast, jem

CHAIN = dict(chain_steps=3, chain_step_size=0.1, buffer_size=64, gibbs_every=1)


def arguments(folder, **kwargs):
    defaults = dict(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        max_steps=6,
        logging_steps=2,
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=1,
    )
    return JemTrainingArguments(**{**defaults, **kwargs})


def train(config, tensors, folder, resume=None, **kwargs):
    torch.manual_seed(0)
    trainer = JemTrainer(
        model=JemModel(config), args=arguments(folder, **kwargs), train_dataset=tensors, eval_dataset=tensors
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(
    "kwargs, logged",
    [
        ({"objective": "warmup"}, {"matching", "cross_entropy", "train_accuracy"}),
        ({"objective": "classifier"}, {"cross_entropy", "train_accuracy"}),
        ({"objective": "joint_cd", **CHAIN}, {"energy_data", "energy_samples", "energy_gap", "saturated"}),
        (
            {
                "objective": "joint_cd",
                "kl_weight": 1.0,
                "entropy_weight": 0.3,
                "warmup_weight": 1.0,
                "energy_penalty": 1e-3,
                "data_noise": 0.02,
                "chain_start": "noised_data",
                **CHAIN,
            },
            {"log_p_last_step", "entropy", "matching"},
        ),
        (
            {"objective": "joint_cd", "buffer_policy": "reservoir", **CHAIN},
            {"energy_gap"},
        ),
        ({"objective": "jem", **CHAIN}, {"energy_gap", "cross_entropy"}),
        ({"objective": "joint_cd", "chain_free_steps": 3, **CHAIN}, {"energy_gap"}),
    ],
)
def test_every_objective_trains_and_logs(config, tensors, tmp_path, kwargs, logged):
    trainer = train(config, tensors, tmp_path, **kwargs)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 3
    assert logged | {"images_per_second", "grad_norm"} <= logs[-1].keys()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    start = JemModel(config).state_dict()
    assert any(not torch.equal(p, start[name]) for name, p in trainer.model.state_dict().items())


def test_warmup_comes_before_chains(config, tensors, tmp_path):
    trainer = train(config, tensors, tmp_path, objective="joint_cd", chain_free_steps=4, logging_steps=1, **CHAIN)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert ["matching" in log for log in logs] == [True] * 4 + [False] * 2
    assert ["energy_gap" in log for log in logs] == [False] * 4 + [True] * 2


def test_learning_reduces_the_warmup_loss(config, tmp_path):
    """Bright images are Smiling, dark ones are not: the model finds it."""
    from jem_hf import AttributeTensors

    labels = torch.stack([torch.arange(64) % 2, torch.arange(64) % 3, torch.arange(64) % 2], dim=1)
    images = (labels[:, 0] * 180 + 30).to(torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    data = AttributeTensors(images, labels, config.attributes)
    trainer = train(config, data, tmp_path, max_steps=150, logging_steps=50, learning_rate=2e-2, ema_decay=0.9)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert logs[-1]["matching"] < 0.8 * logs[0]["matching"]
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] > 0.75
    drawn, _ = trainer.ema.module.generate(torch.tensor([[1, -1, -1], [0, -1, -1]]).repeat_interleave(16, 0))
    assert drawn[:16].mean() > drawn[16:].mean() + 0.5


def test_resume_is_exact(config, tensors, tmp_path):
    """Killed after step 4 and resumed, through the change from warm-up to chains: the same bits at step 8."""
    kwargs = dict(
        objective="joint_cd",
        chain_free_steps=3,
        max_steps=8,
        save_strategy="steps",
        save_steps=4,
        kl_weight=1.0,
        **CHAIN,
    )
    whole = train(config, tensors, tmp_path / "whole", **kwargs)
    resumed = train(config, tensors, tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-4"), **kwargs)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for name, value in whole.ema.state_dict().items():
        assert torch.equal(value, resumed.ema.state_dict()[name]), name
    assert torch.equal(whole.generator.get_state(), resumed.generator.get_state())
    for name, value in whole.negatives.state_dict().items():
        assert torch.equal(value, resumed.negatives.state_dict()[name]), name


def test_saved_model_is_the_moving_average(config, tensors, tmp_path):
    trainer = train(config, tensors, tmp_path, save_strategy="steps", save_steps=6, ema_decay=0.9)
    saved = JemModel.from_pretrained(tmp_path / "checkpoint-6").state_dict()
    average, raw = trainer.ema.module.state_dict(), trainer.model.state_dict()
    assert all(torch.equal(saved[name], average[name]) for name in saved)
    assert any(not torch.equal(saved[name], raw[name]) for name in saved)
    assert saved["label_prior.bias"].abs().sum() > 0


def fixed_chain_trainer(config, tensors, folder, **kwargs):
    """A trainer whose chains end where they are told, and what it is given: data, labels, samples, their labels."""
    trainer = JemTrainer(model=JemModel(config), args=arguments(folder, objective="joint_cd", **kwargs))
    generator = torch.Generator().manual_seed(3)
    data, samples, others = (torch.rand(4, 3, 8, 8, generator=generator) * 2 - 1 for _ in range(3))
    labels, sample_labels = tensors.labels[:4], tensors.labels[4:8]
    trainer.negatives.sample = lambda x: (samples, sample_labels, others)
    return trainer, data, labels, samples, sample_labels, others


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_contrastive_gradient_of_the_trainer(config, tensors, tmp_path):
    """d loss / d theta = mean d E(data) - mean d E(samples), labels that are missing summed out; then the penalty."""
    for penalty in (0.0, 0.1):
        trainer, x, y, samples, sample_y, _ = fixed_chain_trainer(config, tensors, tmp_path, energy_penalty=penalty)
        model = trainer.model
        loss, stats, _ = contrast(trainer, model, x, y)
        data, drawn = model.log_joint(x, y), model.log_joint(samples, sample_y)
        expected = drawn.mean() - data.mean() + penalty * (data.square().mean() + drawn.square().mean())
        torch.testing.assert_close(gradient(loss, model), gradient(expected, model))
        torch.testing.assert_close(stats["energy_gap"], (data.mean() - drawn.mean()))


def test_extra_terms_act_through_the_last_step(config, tensors, tmp_path):
    """With samples x- = theta-dependent step, KL ascends log p~(x-) with parameters held, entropy the log distance."""
    trainer, x, y, samples, sample_y, others = fixed_chain_trainer(
        config, tensors, tmp_path, kl_weight=2.0, entropy_weight=0.5
    )
    shift = torch.zeros(1, requires_grad=True)  # stands for what the last step owes to the parameters
    trainer.negatives.sample = lambda x: (samples + shift, sample_y, others)
    loss, _, _ = contrast(trainer, trainer.model, x, y)
    moved = samples + shift
    log_p = trainer.model.log_joint(moved, sample_y).mean()
    distance = (moved[:, None] - others).flatten(2).norm(dim=2).min(1).values
    expected = -2.0 * log_p - 0.5 * distance.log().mean()
    torch.testing.assert_close(torch.autograd.grad(loss, shift)[0], torch.autograd.grad(expected, shift)[0])
    plain, *_ = fixed_chain_trainer(config, tensors, tmp_path)
    plain.model.load_state_dict(trainer.model.state_dict())
    without, _, _ = contrast(plain, plain.model, x, y)
    loss, _, _ = contrast(trainer, trainer.model, x, y)
    torch.testing.assert_close(gradient(loss, trainer.model), gradient(without, plain.model))  # parameters held


def test_jem_loss_is_log_p_y_given_x_plus_log_p_x(config, tensors, tmp_path):
    trainer, x, y, samples, _, others = fixed_chain_trainer(config, tensors, tmp_path)
    trainer.negatives.sample = lambda x: (samples, torch.full_like(y, -1), others)
    loss, _ = jem(trainer, trainer.model, x, y)
    model = trainer.model
    marginal = model.log_marginal(samples).mean() - model.log_marginal(x).mean()
    expected = marginal + 3 * model(x, y).loss
    torch.testing.assert_close(gradient(loss, model), gradient(expected, model))


def test_moving_average_by_hand(config, tensors, tmp_path):
    trainer = train(config, tensors, tmp_path, max_steps=1, ema_decay=0.999)
    first = [p.clone() for p in trainer.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first, trainer.ema.module.parameters()))
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(1.0)
    for step, decay in ((2, 1 / 10), (3, 2 / 11), (10**6, 0.999)):
        before = [p.clone() for p in trainer.ema.module.parameters()]
        trainer.ema.update(trainer.model, step=step)
        for old, averaged, p in zip(before, trainer.ema.module.parameters(), trainer.model.parameters()):
            torch.testing.assert_close(averaged, decay * old + (1 - decay) * p)


def test_evaluation_writes_a_grid(config, tensors, tmp_path):
    trainer = train(config, tensors, tmp_path, eval_strategy="steps", eval_steps=3, sample_grid=12)
    assert Image.open(tmp_path / "samples-3.png").size == Image.open(tmp_path / "samples-6.png").size
    metrics = [log for log in trainer.state.log_history if "eval_accuracy" in log]
    assert {"eval_nll", "eval_ece", "eval_ap", "eval_loss"} <= metrics[-1].keys()
    json.dumps(metrics)


# What is made of a model that is saved


def one_valued(tensors):
    """Test images of which AP and AUROC are not defined: every label is the same."""
    from jem_hf import AttributeTensors

    return AttributeTensors(tensors.images[:1], torch.tensor([[0, 0, 0]]), tensors.attributes)


def trainer_of(config, tensors, folder, **kwargs):
    settings = dict(save_strategy="steps", save_steps=3, eval_strategy="steps", eval_steps=3, sample_grid=2)
    args = arguments(folder, **settings | kwargs)
    return JemTrainer(JemModel(config), args, train_dataset=tensors, eval_dataset=one_valued(tensors))


@pytest.mark.parametrize("save_strategy", ["steps", "best"])
def test_metrics_that_are_not_defined(config, tensors, tmp_path, save_strategy):
    """They are "-" on the card and never the best."""
    trainer = trainer_of(
        config, tensors, tmp_path, load_best_model_at_end=True, metric_for_best_model="ap", save_strategy=save_strategy
    )
    trainer.train()
    trainer.save_model()
    assert trainer.state.best_metric is None and trainer.state.best_model_checkpoint is None
    text = (tmp_path / "README.md").read_text()
    assert "| ap | - |" in text and "| auroc | - |" in text and "| accuracy | " in text
    assert (tmp_path / "checkpoint-6" / "README.md").exists() == (save_strategy == "steps")


def test_the_best_metric_is_one_that_there_is(config, tensors, tmp_path):
    trainer = trainer_of(config, tensors, tmp_path, metric_for_best_model="acuracy")
    with pytest.raises(ValueError, match=r"'eval_acuracy' is none of the metrics .*eval_accuracy"):
        trainer.train()
    assert JemModel.from_pretrained(tmp_path / "checkpoint-3")


def test_what_fails_after_a_model_is_saved_is_a_warning(config, tensors, tmp_path, caplog):
    """The model is on the disk before its evaluation; grid, card and metrics that fail are named."""
    from transformers.utils import logging

    logging.enable_propagation()
    written = []

    def broken_metrics(prediction):
        written.append((tmp_path / f"checkpoint-{trainer.state.global_step}" / "model.safetensors").is_file())
        raise ZeroDivisionError("no metric")

    trainer = trainer_of(config, tensors, tmp_path)
    trainer.compute_metrics = broken_metrics
    trainer.card = {"license_of": "nobody"}  # not an argument of `write_card`
    trainer.train()
    trainer.save_model()
    assert written == [True, True]
    assert "the evaluation failed, and training goes on: ZeroDivisionError: no metric" in caplog.text
    assert "the model card failed" in caplog.text
    (tmp_path / "samples-6.png").mkdir()  # no picture can be written there
    trainer.compute_metrics = trainer._prediction_metrics
    assert "eval_accuracy" in trainer.evaluate() and "the grid of samples failed" in caplog.text
    for folder in (tmp_path, tmp_path / "checkpoint-3", tmp_path / "checkpoint-6"):
        assert JemModel.from_pretrained(folder)
    resumed = trainer_of(config, tensors, tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    for name, value in trainer.ema.state_dict().items():
        assert torch.equal(value, resumed.ema.state_dict()[name]), name
    logging.disable_propagation()


def test_a_checkpoint_has_the_evaluation_of_its_step(config, tensors, tmp_path):
    trainer_of(config, tensors, tmp_path).train()
    for step in (3, 6):
        state = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert [log["step"] for log in state["log_history"] if "eval_nll" in log][-1] == step
        assert "| accuracy | " in (tmp_path / f"checkpoint-{step}" / "README.md").read_text()


def test_time_limit_stops_and_saves(config, tensors, tmp_path):
    trainer = train(config, tensors, tmp_path, max_steps=10_000, max_minutes=0.02, save_strategy="steps")
    assert 0 < trainer.state.global_step < 10_000
    assert (tmp_path / f"checkpoint-{trainer.state.global_step}" / "training_weights.safetensors").is_file()


def test_learning_rate_drops_as_in_the_paper(config, tensors, tmp_path):
    trainer = train(config, tensors, tmp_path, lr_drop_step=3, lr_drop_factor=0.3, logging_steps=1)
    rates = [log["learning_rate"] for log in trainer.state.log_history if "loss" in log]
    assert rates == pytest.approx([1e-3] * 2 + [3e-4] * 4) or rates == pytest.approx([1e-3] * 3 + [3e-4] * 3)


@pytest.mark.parametrize("training", [True, False])
def test_frozen_gives_parameters_and_mode_back(model, training):
    model.train(training)
    with frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training == training for module in model.modules())


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"objective": "cd"}, "unknown objective 'cd'"),
        ({"chain_start": "nowhere"}, "chain_start"),
        ({"buffer_policy": "lifo"}, "buffer_policy"),
        ({"chain_steps": 0}, "chain_steps"),
        ({"chain_steps": 1, "kl_weight": 1.0}, "chain_steps of 2"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"buffer_size": 4}, "buffer_size"),
    ],
)
def test_wrong_arguments(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **kwargs)


def test_muon_takes_the_same_step_in_either_precision(monkeypatch):
    """bfloat16 has three digits; and the library's own function is back after a step."""
    generator, steps = torch.Generator().manual_seed(0), []
    weight = torch.randn(24, 12, 3, 3, generator=generator)
    gradient = torch.randn(24, 12, 3, 3, generator=generator)
    orthogonal = averaging.muon.zeropower_via_newtonschulz
    for is_native in (True, False):
        monkeypatch.setattr(averaging, "has_native_bfloat16", lambda device, is_native=is_native: is_native)
        parameter = torch.nn.Parameter(weight.clone())
        parameter.grad = gradient.clone()
        averaging.Muon([{"params": [parameter]}], lr=0.1).step()
        steps.append((parameter.detach() - weight).flatten())
    difference = (steps[0] - steps[1]).norm() / steps[1].norm()
    assert 0 < difference < 0.03
    assert averaging.muon.zeropower_via_newtonschulz is orthogonal

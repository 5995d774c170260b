"""What holds for every sampler, whatever it samples."""

import pytest
import torch
from targets import MixedTarget

from jem_hf.models.chains_jem import linear
from jem_hf.models.image_samplers_jem import IMAGE_SAMPLERS, mixed_hmc
from jem_hf.models.label_samplers_jem import LABEL_SAMPLERS, one_hot

TARGET = MixedTarget([2, 3, 2])
GIVEN = torch.tensor([[-1, 2, -1]]).repeat(6, 1)
IMAGE_SETTINGS = {
    "langevin": dict(step_size=0.1, noise_scale=0.3),
    "unadjusted_langevin": dict(step_size=0.1),
    "mala": dict(step_size=0.1),
    "hmc": dict(step_size=0.1, num_leapfrog=3),
    "flow": dict(step_size=0.1, momentum=0.5),
    "ancestral": dict(),
}


def log_gaussian(x):
    return -0.5 * x.flatten(1).square().sum(1)


def start(dtype=torch.float32):
    return torch.linspace(-1.5, 1.5, 24, dtype=dtype).view(6, 1, 2, 2)


def image_case(name):
    def run(x, labels, **kwargs):
        x, info = IMAGE_SAMPLERS[name](log_gaussian, x, **{**IMAGE_SETTINGS[name], **kwargs})
        return [x], info

    return run


def label_case(name):
    def run(x, labels, **kwargs):
        labels, info = LABEL_SAMPLERS[name](TARGET.log_prob, labels, TARGET.num_values, **kwargs)
        return [labels], info

    return run


def mixed_case(x, labels, **kwargs):
    kwargs = {"step_size": 0.1, "num_leapfrog": 3, **kwargs}
    *place, info = mixed_hmc(TARGET.log_joint, x, labels, TARGET.num_values, **kwargs)
    return place, info


CASES = {name: image_case(name) for name in IMAGE_SAMPLERS}
CASES.update({name: label_case(name) for name in LABEL_SAMPLERS}, mixed_hmc=mixed_case)
EVERY_SAMPLER = pytest.mark.parametrize("name", CASES)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@EVERY_SAMPLER
def test_all_randomness_is_the_generator_s(name):
    state = torch.get_rng_state()
    runs = [CASES[name](start(), GIVEN, num_steps=5, generator=seeded(s)) for s in (1, 1, 2)]
    (first, first_info), (second, second_info), (other, _) = runs
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert torch.equal(first_info.energy, second_info.energy)
    different = any(not torch.equal(a, b) for a, b in zip(first, other))
    assert different == (name != "flow")
    assert torch.equal(torch.get_rng_state(), state)


@EVERY_SAMPLER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_types_are_kept_and_inputs_left_alone(name, dtype):
    x, labels = start(dtype), GIVEN.clone()
    place, info = CASES[name](x, labels, num_steps=7, generator=seeded())
    assert torch.equal(x, start(dtype)) and torch.equal(labels, GIVEN)
    for each in place:
        assert not each.requires_grad
        expected = x if each.is_floating_point() else labels
        assert (each.shape, each.dtype, each.device) == (expected.shape, expected.dtype, expected.device)
        if each is place[-1] and not each.is_floating_point():
            assert (each[:, 1] == 2).all(), "a label that is given changed"
            assert (each >= 0).all() and (each < torch.tensor(TARGET.num_values)).all()
    assert info.step.tolist() == list(range(7))
    for field in (info.energy, info.grad_norm, info.saturated, info.acceptance):
        assert field is None or (field.shape == (7, 6) and field.isfinite().all())
    assert (info.acceptance >= 0).all() and (info.acceptance <= 1).all()
    assert (info.saturated is None) == (name in LABEL_SAMPLERS) and (info.grad_norm is None) == (name == "gibbs")


@EVERY_SAMPLER
def test_the_callback_sees_the_state_before_every_step_and_can_stop(name):
    seen, places = [], []

    def callback(*place_and_info):
        seen.append(place_and_info[-1])
        places.append(place_and_info[:-1])
        return len(seen) == 4

    place, info = CASES[name](start(), GIVEN, num_steps=9, generator=seeded(), callback=callback)
    assert [each.step for each in seen] == [0, 1, 2, 3] and info.step.tolist() == [0, 1, 2]
    assert len(places[0]) == len(place) and all(torch.equal(a, b) for a, b in zip(places[3], place))
    if name not in LABEL_SAMPLERS:
        assert torch.equal(places[0][0], start())
    assert any(not torch.equal(a, b) for a, b in zip(places[0], places[3]))
    assert torch.equal(info.energy, torch.stack([each.energy for each in seen[:3]]))
    assert torch.equal(info.acceptance, torch.stack([each.acceptance for each in seen[1:]]))
    place, info = CASES[name](start(), GIVEN, num_steps=9, generator=seeded(), callback=lambda *_: True)
    assert info.energy.shape == (0, 6) and (name in LABEL_SAMPLERS or torch.equal(place[0], start()))


@EVERY_SAMPLER
def test_the_energy_is_that_of_the_state(name):
    energies = []

    def callback(*place_and_info):
        *place, _ = place_and_info
        if not place[-1].is_floating_point():
            place[-1] = one_hot(place[-1], TARGET.num_values)
        density = log_gaussian if name in IMAGE_SAMPLERS else TARGET.log_prob if len(place) == 1 else TARGET.log_joint
        energies.append(-density(*place))

    _, info = CASES[name](start(), GIVEN, num_steps=5, generator=seeded(), callback=callback)
    torch.testing.assert_close(info.energy, torch.stack(energies))


@EVERY_SAMPLER
def test_a_constant_schedule_is_the_constant_and_schedules_run_from_0_to_1(name):
    option = {"flow": "step_size", "ancestral": "eta"}.get(name, "temperature")
    asked = []

    def schedule(progress):
        asked.append(progress)
        return 0.7

    kwargs = [{option: 0.7}, {option: schedule}, {option: linear(0.7, 0.1)}]
    ends = [CASES[name](start(), GIVEN, num_steps=5, generator=seeded(), **each)[1].energy for each in kwargs]
    assert torch.equal(ends[0], ends[1]) and asked == [0, 0.25, 0.5, 0.75, 1]
    assert name in LABEL_SAMPLERS or not torch.equal(ends[0], ends[2])


@EVERY_SAMPLER
def test_no_steps_are_refused(name):
    with pytest.raises(ValueError, match="num_steps"):
        CASES[name](start(), GIVEN, num_steps=0)

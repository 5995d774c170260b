from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import ImageChops
from transformers import pipeline

from jem_hf import JemModel, list_models

TASK = "attribute-conditional-generation"


@pytest.fixture
def pipe(model):
    return pipeline(TASK, model=model)


def same(a, b):
    return ImageChops.difference(a, b).getbbox() is None


def test_output(pipe):
    drawn = pipe({"Smiling": True, "Hair": "red"}, num_images=3, seed=0)
    assert len(drawn) == 3
    for item in drawn:
        assert item["image"].size == (8, 8)
        assert item["attributes"]["Smiling"] is True and item["attributes"]["Hair"] == "red"
        assert item["attributes"]["Hat"] in (True, False)
        assert sum(item["probabilities"]["Hair"].values()) == pytest.approx(1)
        assert 0 < item["probabilities"]["Hat"] < 1


def test_energy_and_probabilities_are_the_models(pipe, model):
    item = pipe("Smiling & Hair=red", seed=0, return_tensors=True)[0]
    x = item["pixel_values"][None]
    labels = torch.tensor([[1, 2, -1]])
    assert item["energy"] == pytest.approx(-model.log_joint(x, labels).item(), abs=1e-5)
    assert item["probabilities"]["Hat"] == pytest.approx(model.predict_proba(x)[0, 2, 1].item(), abs=1e-5)


def test_same_seed_same_images(pipe):
    first, second = (pipe("Smiling", num_images=2, seed=5) for _ in range(2))
    assert all(same(a["image"], b["image"]) for a, b in zip(first, second))
    generated = pipe("Smiling", num_images=2, generator=torch.Generator().manual_seed(5))
    assert all(same(a["image"], b["image"]) for a, b in zip(first, generated))
    other = pipe("Smiling", num_images=2, seed=6)
    assert not same(first[0]["image"], other[0]["image"])


@pytest.mark.parametrize("sampler, free_attributes", [("flow", "complete"), ("flow", "gibbs"), ("langevin", "gibbs")])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_lists_and_batches_keep_every_output(pipe, batch_size, sampler, free_attributes):
    pipe.model.config.sampler, pipe.model.config.free_attributes = sampler, free_attributes
    requests = ["Smiling", {"Hat": False}, "Hair=red & ~Smiling"]
    drawn = pipe(requests, num_images=2, seed=1, batch_size=batch_size)
    assert [len(items) for items in drawn] == [2, 2, 2]
    for request, items in zip(requests, drawn):
        alone = pipe(request, num_images=2, seed=1)
        for a, b in zip(items, alone):
            assert a["attributes"] == b["attributes"]
            assert a["energy"] == pytest.approx(b["energy"], abs=1e-4)


def test_settings_reach_the_chain(pipe):
    steps = []
    pipe("Smiling", num_inference_steps=7, callback=lambda x, info: steps.append(info.step))
    assert steps == list(range(7))
    plain = pipe("Smiling", seed=0, guidance_scale=1.0, return_tensors=True)[0]["pixel_values"]
    guided = pipe("Smiling", seed=0, guidance_scale=20.0, return_tensors=True)[0]["pixel_values"]
    assert not torch.equal(plain, guided)
    item = pipe("Smiling", free_attributes="marginalise")[0]
    assert item["attributes"] == {"Smiling": True, "Hair": None, "Hat": None}


@pytest.mark.parametrize(
    "request_, kwargs, message",
    [
        ("Smilng", {}, "did you mean 'Smiling'"),
        ("Smiling & ~Smiling", {}, "contradicts"),
        ([], {}, "no request"),
        ("Smiling", {"num_images": 0}, "num_images"),
        ("Smiling", {"num_inference_steps": 0}, "num_inference_steps"),
        ("Smiling", {"free_attributes": "ignore"}, "free_attributes"),
        ("Smiling", {"seed": 1, "generator": torch.Generator()}, "not both"),
    ],
)
def test_bad_input(pipe, request_, kwargs, message):
    with pytest.raises(ValueError, match=message):
        pipe(request_, **kwargs)
    with pytest.raises(TypeError, match="num_image_steps"):
        pipe("Smiling", num_image_steps=3)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_images": np.int64(2), "num_candidates": np.uint8(1), "batch_size": np.int32(2)},
        {"num_images": torch.tensor(2), "num_inference_steps": np.array(4)},
        {"num_images": 2.0, "seed": 5.0, "num_inference_steps": 4.0, "guidance_scale": np.float32(2)},
        {"num_images": Fraction(4, 2), "seed": np.uint64(5)},
        {
            "num_images": 2,
            "sampler": "mala",
            "sampler_kwargs": {"step_size": np.float32(0.125)},
        },
        {"num_images": 2, "image": np.zeros((8, 8)), "strength": np.float16(0.5), "hold_scale": np.int64(2)},
    ],
)
def test_numbers_of_other_libraries_are_numbers(pipe, arguments):
    plain = {name: value for name, value in arguments.items() if name in ("image", "sampler")}
    if "sampler_kwargs" in arguments:
        plain["sampler_kwargs"] = {"step_size": 0.125}
    found = pipe("Hat", **{"seed": np.int64(5), "return_tensors": True} | arguments)
    expected = pipe("Hat", seed=5, return_tensors=True, num_images=2, **plain)
    assert all(torch.equal(a["pixel_values"], b["pixel_values"]) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", ["num_images", "num_candidates", "num_inference_steps", "batch_size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True, np.True_, float("nan"), float("inf"), 10**400, [2], {}])
def test_what_is_no_number_of_things_is_refused(pipe, name, value):
    with pytest.raises(ValueError, match=f"^{name} is a whole number from 1 on, not "):
        pipe("Hat", **{name: value})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"seed": 2**70}, "seed is a whole number from 0 to 18446744073709551615, not 1180591620717411303424"),
        ({"seed": -1}, "seed is a whole number from 0"),
        ({"seed": True}, "seed is a whole number"),
        ({"seed": np.array([1, 2])}, r"not array\(\[1, 2\]\)"),
        ({"guidance_scale": "2"}, "guidance_scale is a finite number, not '2'"),
        ({"guidance_scale": 10**400}, "guidance_scale is a finite number"),
        ({"image": np.zeros((8, 8)), "strength": np.nan}, "strength is a finite number, not nan"),
        ({"image": np.zeros((8, 8)), "hold_scale": 1j}, "hold_scale is a finite number"),
        ({"sampler": "mala", "sampler_kwargs": [0.1]}, "sampler_kwargs is a dict"),
        ({"generator": np.random.default_rng(0)}, "generator is a torch.Generator"),
        ({"free_attributes": 3}, "unknown free_attributes 3"),
        ({"sampler": 3}, "unknown sampler 3"),
    ],
)
def test_other_arguments_that_are_none(pipe, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        pipe("Hat", **arguments)
    assert "\n" not in str(error.value)


def test_requests_of_other_libraries(pipe):
    frame = pd.DataFrame({"Hat": [True, False], "Hair": ["red", "black"]})
    call = dict(seed=0, num_inference_steps=2, free_attributes="marginalise")
    labels = [{"Hat": True, "Hair": "red", "Smiling": None}, {"Hat": False, "Hair": "black", "Smiling": None}]
    for requests in (
        [row for _, row in frame.iterrows()],
        frame.to_dict("records"),
        ("Hat & Hair=red", "~Hat & Hair=black"),
        (request for request in ["Hat & Hair=red", "~Hat & Hair=black"]),
        np.array(["Hat & Hair=red", "~Hat & Hair=black"]),
        [{"Hat": np.True_, "Hair": np.int64(2)}, {"Hat": torch.tensor(0), "Hair": 0}],
    ):
        assert [items[0]["attributes"] for items in pipe(requests, **call)] == labels
    assert pipe(frame.iloc[0], **call)[0]["attributes"] == labels[0]
    for request in (frame, 3, [3], next(frame.itertuples()), b"Hat"):
        with pytest.raises(ValueError) as error:
            pipe(request)
        assert "\n" not in str(error.value)


def test_a_mistake_in_the_last_request_is_found_before_the_first_is_drawn(pipe):
    steps = []
    with pytest.raises(ValueError, match="did you mean 'Smiling'"):
        pipe(["Hat", "Smilng"], batch_size=1, callback=lambda x, info: steps.append(info.step))
    assert not steps


def test_from_folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    a = pipeline(TASK, model=str(tmp_path))("Hat", seed=2)[0]
    b = pipeline(TASK, model=JemModel.from_pretrained(tmp_path))("Hat", seed=2)[0]
    assert same(a["image"], b["image"])


def test_default_is_the_bundled_model():
    pipe = pipeline(TASK)
    assert "jem-avatars" in list_models()
    assert "Eyeglasses" in pipe.model.config.attributes
    drawn = pipe({"Eyeglasses": True, "Smiling": True, "Beard": False}, num_images=2, seed=0)
    named = pipeline(TASK, model=JemModel.from_pretrained("jem-avatars"))(
        "Eyeglasses & Smiling & ~Beard", num_images=2, seed=0
    )
    assert all(same(a["image"], b["image"]) for a, b in zip(drawn, named))
    assert drawn[0]["image"].size == (64, 64)

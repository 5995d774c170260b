"""A long run on a stream with a large buffer, and the memory of the process at every step."""

import argparse
import json
import os
from pathlib import Path

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from jem_hf import JemConfig, JemImageProcessor, JemModel, JemTrainer, JemTrainingArguments
from jem_hf.data.tensors import AttributeStream

NUM_IMAGES = 2000


def resident_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def make_stream(shuffle_buffer: int) -> AttributeStream:
    """PNG files of 8x8 pixels as a stream of 10 shards."""
    import datasets

    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (NUM_IMAGES, 8, 8, 3), generator=generator, dtype=torch.uint8).numpy()
    features = {"image": datasets.Image(), "A": datasets.Value("bool"), "B": datasets.Value("bool")}
    columns = {
        "image": list(pixels),
        "A": [i % 2 == 0 for i in range(NUM_IMAGES)],
        "B": [i % 3 == 0 for i in range(NUM_IMAGES)],
    }
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    processor = JemImageProcessor(size=8, crop_size=8)
    return AttributeStream(rows.to_iterable_dataset(num_shards=10), processor, ["A", "B"], shuffle_buffer)


class MemoryRecorder(TrainerCallback):
    """Resident memory in MiB every `every` steps."""

    def __init__(self, every: int):
        self.every, self.steps, self.mib = every, [], []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.steps.append(state.global_step)
            self.mib.append(resident_mib())


def soak(folder: Path, num_steps: int, buffer_size: int) -> tuple[MemoryRecorder, JemTrainer]:
    """Warm-up for a tenth of the steps, then chains, with guard, checkpoints and logs, as in a real run."""
    torch.manual_seed(0)
    config = JemConfig(attributes=["A", "B"], image_size=8, backbone_kwargs={"width": 4, "hidden_size": 8})
    args = JemTrainingArguments(
        output_dir=str(folder),
        objective="joint_cd",
        chain_free_steps=num_steps // 10,
        chain_steps=2,
        chain_step_size=0.1,
        buffer_size=buffer_size,
        energy_penalty=0.1,
        per_device_train_batch_size=4,
        max_steps=num_steps,
        save_steps=num_steps // 4,
        save_total_limit=1,
        logging_steps=100,
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = JemTrainer(model=JemModel(config), args=args, train_dataset=make_stream(shuffle_buffer=500))
    recorder = MemoryRecorder(every=max(1, num_steps // 200))
    trainer.add_callback(recorder)
    trainer.train()
    return recorder, trainer


def growth(recorder: MemoryRecorder) -> float:
    """MiB in a thousand steps: the slope of a line through the second half of the readings."""
    half = len(recorder.steps) // 2
    steps, mib = (torch.tensor(each[half:], dtype=torch.float64) for each in (recorder.steps, recorder.mib))
    steps, mib = steps - steps.mean(), mib - mib.mean()
    return float((steps * mib).sum() / steps.square().sum() * 1000)


def plot(recorder: MemoryRecorder, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.plot(recorder.steps, recorder.mib)
    axes.set(xlabel="step", ylabel="resident memory, MiB", ylim=(0, None))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"))
    parser.add_argument("--num-steps", type=int, default=10_000)
    parser.add_argument("--buffer-size", type=int, default=1_000_000)
    parser.add_argument("--figure", type=Path, help="PNG file to draw")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    recorder, trainer = soak(options.folder, options.num_steps, options.buffer_size)
    if options.figure:
        plot(recorder, options.figure)
    half = recorder.mib[len(recorder.mib) // 2 :]
    result = {
        "steps": trainer.state.global_step,
        "passes": trainer.run_state()["pass"] + 1,
        "buffer_images": len(trainer.negatives.buffer),
        "buffer_mib": round(trainer.negatives.buffer.images.nbytes / 2**20),
        "mib_after_a_tenth": round(recorder.mib[len(recorder.mib) // 10 + 1]),
        "mib_second_half": [round(min(half)), round(max(half))],
        "mib_per_thousand_steps": round(growth(recorder), 2),
        "alarms": trainer.guard.alarms,
    }
    print(json.dumps(result))

"""Times what users wait for: drawing data, loading a model, drawing images. Prints medians and ranges as JSON.

python benchmarks/speed.py [MODEL] [--repeats 5]
"""

import argparse
import json
import platform
import statistics
import time

import torch
from transformers import pipeline

import jem_hf
from jem_hf.avatars import render


def timed(function, repeats: int) -> dict:
    """Median, minimum and maximum of the seconds that `function` takes, after one call that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    seconds = seconds[1:]
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="jem-avatars")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    load = timed(lambda: jem_hf.JemModel.from_pretrained(args.model), args.repeats)
    model = jem_hf.JemModel.from_pretrained(args.model)
    generate = pipeline("attribute-conditional-generation", model=model)
    first = model.config.attributes[0]
    report = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "load_model_s": load,
        "draw_16_images_s": timed(lambda: generate(first, num_images=16, seed=0), args.repeats),
        "render_100_avatars_s": timed(lambda: [render(i) for i in range(100)], args.repeats),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

"""
What a step costs beside the bare loop, which cannot be left out, and beside torchebm where that is installed.

    python benchmarks/run.py --output results                   # everything, half an hour on two cores
    python benchmarks/run.py --quick                            # some minutes
    python benchmarks/run.py --only chain matching --seconds 60

Writes results.json and results.png, and prints a table. On the GPU where there is one, in bfloat16 too.
"""

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import torch
from flops import FlopCounter, matmul_rate
from measure import interleaved, peak_memory
from plot import plot
from tqdm import tqdm
from workloads import DEVICE, WORKLOADS, Setting

from jem_hf.training.devices import has_native_bfloat16

GRID = list(product((1, 4, 16, 64, 256), (32, 64), (16, 32, 64)))  # batch, pixels, width
OTHERS = [{"batch_size": 1}, {"batch_size": 256}, {"image_size": 64}, {"width": 16}, {"width": 64}]
PAPER = Setting(batch_size=100, image_size=64, width=64, num_steps=40)
WITH_MEMORY = ("chain", "contrastive_divergence", "matching", "pipeline")
DATA = ("loading", "buffer")
# glibc keeps what is freed: else each contender pays at random for memory that goes and comes
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def settings_of(workload: str, quick: bool) -> list[Setting]:
    """
    64 images of 32 pixels and width 32, and one of these changed at a time; chains on the whole grid; on a GPU also as
    in the paper.
    """
    settings = [Setting()]
    if workload in DATA:
        return settings
    if workload == "chain":
        grid = [(64, 32, 32), (1, 32, 32)] if quick else GRID
        settings = [Setting(*each, num_steps=_chain_steps(*each)) for each in grid]
    elif not quick:
        settings += [replace(Setting(), **other) for other in OTHERS]
    if DEVICE.type == "cuda" and workload != "evaluation":
        settings.append(PAPER)
    if has_native_bfloat16(DEVICE) and workload not in ("pipeline", "evaluation"):
        settings += [replace(each, bfloat16=True) for each in settings if each in (Setting(), PAPER)]
    return settings


def _chain_steps(batch_size: int, image_size: int, width: int) -> int:
    """Fewer for larger computations: the setting of `Setting()` has 20, one eight times as large 2."""
    size = batch_size * image_size**2 * width**2 / (64 * 32**4)
    return max(1, min(20, round(20 / size)))


def measure(workload: str, setting: Setting, seconds: float, rates: dict) -> dict:
    """Times and ratios of all contenders, operations of the first, and the share of the matmul rate of each."""
    contenders = WORKLOADS[workload](setting)
    result = {"workload": workload, **asdict(setting), "contenders": interleaved(contenders, seconds)}
    with FlopCounter() as counter:
        next(iter(contenders.values()))()
    if counter.total:
        result["gflop"] = round(counter.total / 1e9, 3)
        rate = rates["bfloat16" if setting.bfloat16 else "float32"]
        for own in result["contenders"].values():
            own["matmul_share"] = counter.total / own["seconds"][0] / rate
    if workload in WITH_MEMORY and setting in (Setting(), PAPER):
        for name, own in result["contenders"].items():
            own["peak_mib"] = peak_memory(contenders[name])
    return result


def machine() -> dict:
    """The device, and how fast it multiplies matrices."""
    size = 8192 if DEVICE.type == "cuda" else 1024
    return {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "matmul_rate": {str(t).split(".")[1]: matmul_rate(size, t) for t in (torch.float32, torch.bfloat16)},
    }


def _processor() -> str:
    names = [line.split(":")[1] for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0].strip() if names else platform.processor()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def table(results: list[dict]) -> str:
    """One line a contender."""
    lines = [
        "| workload | batch | pixels | width | steps | | ms | times the first | quartiles | matmul | peak MiB |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        workload = result["workload"].replace("_", " ") + (" (bfloat16)" if result["bfloat16"] else "")
        fixed = [workload, *(str(result[name]) for name in ("batch_size", "image_size", "width", "num_steps"))]
        for name, own in result["contenders"].items():
            ratio, lower, upper = own["ratio"]
            share = f"{own['matmul_share']:.2f}" if "matmul_share" in own else ""
            peak = f"{own['peak_mib']:.0f}" if "peak_mib" in own else ""
            times = [f"{1e3 * own['seconds'][0]:.4g}", f"{ratio:.3f}", f"{lower:.3f}-{upper:.3f}"]
            lines.append("| " + " | ".join([*fixed, name, *times, share, peak]) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder")
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--seconds", type=float, help="time for each measurement; default 20, with --quick 5")
    parser.add_argument("--quick", action="store_true", help="two chains instead of the grid")
    args = parser.parse_args()
    if not ALLOCATOR.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    seconds = args.seconds or (5 if args.quick else 20)
    report = {"machine": machine(), "results": []}
    plan = [(workload, setting) for workload in args.only for setting in settings_of(workload, args.quick)]
    args.output.mkdir(parents=True, exist_ok=True)
    for workload, setting in tqdm(plan):
        report["results"].append(measure(workload, setting, seconds, report["machine"]["matmul_rate"]))
        (args.output / "results.json").write_text(json.dumps(report, indent=1))
    plot(report["results"], args.output / "results.png")
    print(json.dumps(report["machine"]), table(report["results"]), sep="\n\n")


if __name__ == "__main__":
    main()

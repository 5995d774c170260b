"""Which of several images to keep: `python training/ranking.py MODEL DATASET`, judged by an oracle.

Draws 8 images for each request, keeps the one that scores best, and prints how many have all that was asked.
"""

import argparse

import torch

from jem_hf import JemImageProcessor, JemModel
from jem_hf.evaluation.evaluate import with_half_of_novel
from jem_hf.evaluation.judges import load_oracle
from jem_hf.evaluation.requests import held_out_combinations, requests_by_kind
from jem_hf.metrics.prediction import request_metrics
from jem_hf.training.splits import load_evaluation_splits


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--num-requests", type=int, default=64, help="of each kind")
    parser.add_argument("--num-candidates", type=int, default=8)
    args = parser.parse_args()

    model, processor = JemModel.from_pretrained(args.model), JemImageProcessor.from_pretrained(args.model)
    splits = load_evaluation_splits(args.dataset, processor, model.config)
    judged, novel = with_half_of_novel(splits["train"], splits["novel"])
    oracle = load_oracle(judged, model.config.num_values)
    held_out = held_out_combinations(model.config, splits["train"].labels, novel.labels)
    requests = requests_by_kind(splits["test"].labels, novel.labels, held_out, 4 * args.num_requests)
    generator = torch.Generator().manual_seed(0)
    print("| requests | the first | best by log p(y given x) | best by log p(x, y) |\n|---|---:|---:|---:|")
    for kind in ("seen", "novel"):
        rows = requests[kind][0][::8].repeat_interleave(2, 0)[: args.num_requests]
        drawn = [model.generate(row.expand(args.num_candidates, -1), generator=generator)[0] for row in rows]
        x = torch.stack(drawn).clamp(-1, 1)
        with torch.no_grad():
            distribution = model.label_distribution(model.encode(x.flatten(0, 1)))
            log_joint = distribution.log_joint(rows.repeat_interleave(args.num_candidates, 0)).view(x.shape[:2])
            log_marginal = distribution.log_marginal().view(x.shape[:2])
        predicted = oracle.predict(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        shares = []
        for score in (torch.zeros_like(log_joint), log_joint - log_marginal, log_joint):
            kept = predicted[torch.arange(len(rows)), score.argmax(1)]
            shares.append(f"{request_metrics(kept, rows)['all_right']:.3f}")
        print(f"| {kind} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()

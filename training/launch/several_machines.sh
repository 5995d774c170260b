#!/bin/sh
# Run on every machine, with output_dir on storage that all of them share:
#   NUM_MACHINES=2 MACHINE_RANK=0 MAIN_ADDRESS=10.0.0.1 several_machines.sh RECIPE [--field value ...]
exec torchrun --nnodes "$NUM_MACHINES" --node_rank "$MACHINE_RANK" --nproc_per_node "${NUM_PROCESSES:-gpu}" \
  --rdzv_backend c10d --rdzv_id jem_hf --rdzv_endpoint "$MAIN_ADDRESS:${MAIN_PORT:-29500}" \
  --max_restarts "${MAX_RESTARTS:-0}" "$(dirname "$0")/../train.py" "$@"

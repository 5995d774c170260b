#!/bin/sh
# All GPUs of one machine, or so many processes on its cores: one_machine.sh RECIPE [--field value ...]
# A run that was stopped goes on: add --resume.
exec torchrun --standalone --nproc_per_node "${NUM_PROCESSES:-gpu}" "$(dirname "$0")/../train.py" "$@"

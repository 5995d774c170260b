#!/bin/sh
# sbatch --nodes 2 slurm.sh RECIPE [--field value ...]; Slurm sends SIGTERM, waits, and starts the job again.
#SBATCH --job-name jem_hf
#SBATCH --ntasks-per-node 1
#SBATCH --gpus-per-node 8
#SBATCH --signal TERM@120
#SBATCH --requeue
export NUM_MACHINES="$SLURM_NNODES"
MAIN_ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MAIN_ADDRESS
srun sh -c 'MACHINE_RANK=$SLURM_NODEID exec training/launch/several_machines.sh "$@" --resume' launch "$@"

#!/usr/bin/env bash
# A labeling run on Slurm: sbatch slurm.sh. One Ray head on the first node, one worker on each of the others, then the job.
# Submitted again after a time limit or a lost node, it goes on where it stopped.
#SBATCH --job-name=rlabel
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

ENVIRONMENT=${ENVIRONMENT:-$HOME/rlabel/.venv}     # where rlabel is installed, on every node
MODEL=${MODEL:-$HOME/models/tuned}
IN=${IN:-/scratch/$USER/photos}
OUT=${OUT:-/scratch/$USER/run}                     # a file system that all nodes see
PORT=${PORT:-6379}

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false RAY_USAGE_STATS_ENABLED=0
source "$ENVIRONMENT/bin/activate"

# srun does not take --cpus-per-task over from sbatch (Slurm 22.05 and later): Ray would be bound to one core.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')

srun --nodes=1 --ntasks=1 -w "$head" \
  ray start --head --node-ip-address="$address" --port="$PORT" --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_ON_NODE" --block &
sleep 15
for node in "${nodes[@]:1}"; do
  srun --nodes=1 --ntasks=1 -w "$node" ray start --address="$address:$PORT" --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_ON_NODE" --block &
done

# Two minutes before the limit Slurm sends SIGTERM; rlabel finishes its commits and exits within 10 s.
rlabel label --address "$address:$PORT" --num-actors 0 --gpus-per-actor 1 --cpus-per-actor 6 \
  --images "$IN/images" --regions "$IN/masks.json" --vocabulary "$IN/names.json" --model "$MODEL" \
  --quantization nf4 --dtype bfloat16 --out "$OUT" &
job=$!
stopped=
trap 'stopped=1; kill -TERM "$job" || true' TERM
code=0
wait "$job" || code=$?
# A signal ends the first wait: the second one has the exit code of the job itself.
if [[ -n $stopped ]]; then
  code=0
  wait "$job" || code=$?
fi
exit "$code"

#!/usr/bin/env bash
# SLURM: srun starts one process per GPU; ranks, sizes and the master's address are read from SLURM's own variables.
# Cost: nodes x GPUs x the time limit below; the recipe's header states what the paper used.
#
#   sbatch run_scripts/train_slurm.sh projects/blip2/stage1_vitg.yaml [--options ...]
#
# Change the lines below, or override them: sbatch --nodes=1 --gpus-per-node=4 --ntasks-per-node=4 ...
# SIGTERM comes 90 s before the limit: the run saves and leaves with 143, this script puts the job back into the queue,
# and --resume auto goes on. A cancelled job (scancel) stays cancelled; preempted ones SLURM itself queues again.
#SBATCH --job-name=lavis_lite
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@90
#SBATCH --requeue
#SBATCH --output=%x-%j.out
set -euo pipefail
if [ $# -lt 1 ]; then
    echo "usage: sbatch $0 RECIPE.yaml [arguments of train.py]" >&2
    exit 2
fi
recipe="$1"
shift
# sbatch copies this script elsewhere: the checkout is the folder that sbatch was called in
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
python="${LAVIS_LITE_VENV:-.venv}/bin/python"
[ -x "$python" ] || python=python
code=0
srun --kill-on-bad-exit=1 "$python" train.py --cfg-path "$recipe" --resume auto "$@" || code=$?
if [ "$code" -eq 143 ] && scontrol show job "${SLURM_JOB_ID:-}" | grep -q 'JobState=RUNNING'; then
    echo "stopped by a signal (exit code 143): job $SLURM_JOB_ID goes back into the queue"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"

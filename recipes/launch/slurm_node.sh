#!/bin/bash
# Part of slurm.sbatch, on each node: torchrun with the arguments given. USR1 and TERM reach its ranks as USR1, so that
# they save and end with 0 in their own time; torchrun itself kills them 30 seconds after a TERM.
set -uo pipefail

PATH=$PWD/.venv/bin:$PATH
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Some clusters send USR1 to every process of a job: torchrun ignores it, and so does a rank that cannot save yet.
(trap '' USR1; exec torchrun --nproc_per_node="${SLURM_GPUS_ON_NODE:-1}" "$@") &
torchrun=$!
trap 'pkill -USR1 --parent "$torchrun"' USR1 TERM
wait "$torchrun"
while kill -0 "$torchrun" 2> /dev/null; do
    wait "$torchrun"  # a signal ended the wait before
done
wait "$torchrun"

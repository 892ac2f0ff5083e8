#!/usr/bin/env bash
# Runs the tests as other machines would: with torch's kernels for older processors, and with more threads.
#
#   bash run_scripts/test_matrix.sh                                   # the whole suite, all nine combinations
#   bash run_scripts/test_matrix.sh --numeric                         # only those that compare what is computed
#   bash run_scripts/test_matrix.sh --kernels default,avx2 --threads 1 [--numeric] [-- arguments of pytest]
#
# --kernels: any of default (no vector instructions), avx2, native (the machine's own). --threads: any numbers.
# Cost: on 2 cores the numeric part takes about 2 minutes for each combination, the whole suite some times that.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kernels="default,avx2,native" threads="1,2,4" tests=()
while [ $# -gt 0 ]; do
    case "$1" in
        --kernels) kernels="${2:?--kernels needs a list, for example default,native}"; shift 2 ;;
        --threads) threads="${2:?--threads needs a list, for example 1,2}"; shift 2 ;;
        --numeric) tests=(tests/models tests/parity tests/tasks/test_retrieval_scoring.py
            tests/runners/test_{compile,objective,optim,optimizers,ranks,resume,runner,sharding,sharding_unequal}.py)
            shift ;;
        --) shift; break ;;
        *) echo "[matrix] unknown argument $1; see the head of $0" >&2; exit 2 ;;
    esac
done
for kernel in ${kernels//,/ }; do
    case "$kernel" in default | avx2 | native) ;; *)
        echo "[matrix] unknown kernels $kernel; choose from default, avx2, native" >&2; exit 2 ;;
    esac
done
bash run_scripts/setup_env.sh dev || exit 1
python="${LAVIS_LITE_VENV:-.venv}/bin/python"
cores="$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)"
status=0
row() { printf '%-8s %-8s %-10s %8s  %s' "$@"; }
table="$(row kernels threads capability seconds result)"

# as_on KERNELS THREADS COMMAND...: the command on such a machine
as_on() (
    unset ATEN_CPU_CAPABILITY
    if [ "$1" != native ]; then export ATEN_CPU_CAPABILITY="$1"; fi
    export OMP_NUM_THREADS="$2" LAVIS_LITE_TEST_THREADS="$2"
    shift 2
    "$@"
)

for kernel in ${kernels//,/ }; do
    for count in ${threads//,/ }; do
        capability="$(as_on "$kernel" "$count" "$python" -c \
            'import torch; print(torch.backends.cpu.get_cpu_capability())')"
        echo "[matrix] kernels $kernel ($capability), threads $count"
        began=$SECONDS result=passed
        # a process per core, at most 4; files stay whole, for tests of a file share what it sets up
        as_on "$kernel" "$count" "$python" -m pytest -q -n "$((cores < 4 ? cores : 4))" --dist loadfile \
            ${tests[@]+"${tests[@]}"} "$@" || { result=FAILED; status=1; }
        table+=$'\n'"$(row "$kernel" "$count" "$capability" "$((SECONDS - began))" "$result")"
    done
done
echo "$table"
exit "$status"

#!/usr/bin/env bash
# Installs what the tests need, then runs ruff, mypy and all tests; with arguments, only pytest with these arguments.
# Cost: the installation once (see setup_env.sh), then about 3 minutes on 2 CPU cores, offline.
#
#   bash run_scripts/test.sh [arguments of pytest, e.g. -k registry]
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash run_scripts/setup_env.sh dev || exit 1
bin="${LAVIS_LITE_VENV:-.venv}/bin"
status=0
check() {
    echo "[test] $*"
    "$bin/python" -m "$@" || { echo "[test] $1 found faults; the tests follow, the exit code will not be 0" >&2; status=1; }
}
if [ $# -eq 0 ]; then
    check ruff check --output-format concise .
    check mypy
fi
echo "[test] pytest $*"
"$bin/python" -m pytest -q "$@" || status=$?
exit "$status"

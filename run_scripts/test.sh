#!/usr/bin/env bash
# Installs what the tests need, then runs ruff, mypy and all tests; with arguments, only pytest with these arguments.
# Cost: the installation once (see setup_env.sh), then about 4 minutes on 2 recent CPU cores, offline.
#
#   bash run_scripts/test.sh [arguments of pytest, e.g. -k registry]
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash run_scripts/setup_env.sh dev || exit 1
bin="${LAVIS_LITE_VENV:-.venv}/bin"
status=0 types=""
faults() {
    echo "[test] $1 found faults; the exit code will not be 0" >&2
    status=1
}
if [ $# -eq 0 ]; then
    "$bin/python" -m ruff check --output-format concise . || faults ruff
    # beside the tests: without its cache it takes a minute of one core
    "$bin/python" -m mypy 2>&1 | sed 's/^/[mypy] /' & types=$!
    # a process per core, at most 4; files stay whole, for tests of a file share what it sets up
    cores="$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)"
    set -- -n "$((cores < 4 ? cores : 4))" --dist loadfile
fi
echo "[test] pytest $*"
"$bin/python" -m pytest -q "$@" || status=$?
if [ -n "$types" ]; then wait "$types" || faults mypy; fi
exit "$status"

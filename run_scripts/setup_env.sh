#!/usr/bin/env bash
# Makes the virtual environment and installs the package into it, editable. Does nothing where that is done already.
# Cost: 2 to 5 minutes and 1.6 GB with the CPU build of torch (more with the CUDA build); under a second from then on.
#
#   bash run_scripts/setup_env.sh [EXTRAS]        e.g. dev, or dev,track
#
# LAVIS_LITE_VENV: folder of the environment (default .venv).  PYTHON: the interpreter to make it with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras="${1:-}"
venv="${LAVIS_LITE_VENV:-.venv}"
start=$SECONDS

say() { printf '[setup] %s\n' "$*"; }
fail() { printf '[setup] %s\n' "$@" >&2; exit 1; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

find_python() {
    local name
    for name in ${PYTHON:-python3 python python3.13 python3.12 python3.11 python3.10}; do
        if new_enough "$name"; then printf '%s\n' "$name"; return; fi
    done
    fail "Python 3.10 or newer is needed; ${PYTHON:-python3} gives: $("${PYTHON:-python3}" --version 2>&1 || true)" \
        "Install one, or name it: PYTHON=/path/to/python3.12 bash $0"
}

make_venv() {
    local python
    python="$(find_python)"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail \
        "$python has no venv module. On Debian and Ubuntu: apt-get install python3-venv"
    say "making the virtual environment $venv with $("$python" --version)"
    "$python" -m venv "$venv"
}

# What the installation depends on; it changes when a dependency, a pin, the interpreter or the checkout's place does.
fingerprint() {
    "$venv/bin/python" - <<'PYTHON'
import hashlib, os, sys
digest = hashlib.sha256()
for name in ("setup.py", "pyproject.toml", "constraints.txt"):
    digest.update(open(name, "rb").read())
digest.update(f"{sys.version} {os.getcwd()}".encode())
print(digest.hexdigest())
PYTHON
}

pip_install() {
    # -qq: errors only.  ${pins[@]+...}: old versions of bash take an empty list for an unset variable
    "$venv/bin/python" -m pip install -qq --disable-pip-version-check ${pins[@]+"${pins[@]}"} "$@" || fail \
        "pip could not install: $*" \
        "Its own words are above. The first installation needs a network (or a local index in pip's configuration);" \
        "everything later works without one. Run the same command again to go on from here."
}

[ -x "$venv/bin/python" ] || make_venv
new_enough "$venv/bin/python" || fail \
    "$venv is no working environment of Python 3.10 or newer. Remove the folder, or choose another by LAVIS_LITE_VENV."

want="$(fingerprint)"
stamps=("$venv/lavis_lite_installed_${extras//,/_}")
[ -n "$extras" ] || stamps+=("$venv"/lavis_lite_installed_*)  # an installation with extras serves as one without
for stamp in "${stamps[@]}"; do
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
        say "$venv is up to date"
        exit 0
    fi
done

pins=(-c constraints.txt)
if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    say "Python 3.10: installing the newest versions that support it instead of those in constraints.txt"
    pins=()
fi
"$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null
# torch comes first and alone: whatever build of it is there is kept by all that follows
say "installing torch and torchvision (the largest part: 200 MB for CPUs, several GB with CUDA)"
pip_install torch
pip_install torchvision
say "installing lavis_lite${extras:+ with [$extras]} and its other dependencies"
pip_install -e ".${extras:+[$extras]}"
printf '%s\n' "$want" > "${stamps[0]}"
say "done in $((SECONDS - start)) s: $(du -sh "$venv" | cut -f1) in $venv"

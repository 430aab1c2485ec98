#!/usr/bin/env bash
# Renews constraints*.txt from pyproject.toml. Versions that still fit are kept; delete a line to let it move.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/pip_settings.sh
uv_like_pip .venv/bin/pip
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT

compile() { # compile cpu|gpu [uv options]
    local device=$1
    shift
    cat constraints.txt "constraints-$device.txt" >"$work/$device.txt"
    if [ "$device" = cpu ]; then sed -i 's/^torch==.*/&+cpu/' "$work/cpu.txt"; fi
    .venv/bin/uv pip compile "${UV_ARGS[@]}" pyproject.toml --extra "$device" --extra dev --python-version 3.11 \
        --no-header --no-annotate --quiet -o "$work/$device.txt" "$@" >/dev/null
    sed 's/+cpu$//' "$work/$device.txt" | LC_ALL=C sort >"$work/$device.sorted"
}

compile cpu --override scripts/overrides-cpu.txt
compile gpu
export LC_ALL=C
comm -12 "$work/cpu.sorted" "$work/gpu.sorted" >constraints.txt
comm -23 "$work/cpu.sorted" "$work/gpu.sorted" >constraints-cpu.txt
comm -13 "$work/cpu.sorted" "$work/gpu.sorted" >constraints-gpu.txt
wc -l constraints.txt constraints-cpu.txt constraints-gpu.txt

#!/usr/bin/env bash
# Makes .venv from a Python 3.11 or 3.12 and nothing else. Usage: scripts/setup.sh cpu|gpu
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/pip_settings.sh

device=${1:?usage: scripts/setup.sh cpu|gpu}
python=.venv/bin/python
pip=.venv/bin/pip

say() { printf '[setup] %s\n' "$*"; }

find_python() {
    local candidate
    for candidate in python3.11 python3.12 python3; do
        # Runs it: a version manager's shim exists for versions that are not active.
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    say "no Python 3.11 or 3.12 with the venv module was found. Install one and run 'make setup' again," \
        "for example: apt-get install python3.11 python3.11-venv python3.11-dev" >&2
    return 1
}

make_venv() {
    local system_python other=.venv/.installed-cpu
    if [ "$device" = cpu ]; then other=.venv/.installed-gpu; fi
    if [ ! -e "$other" ] && "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null \
        && "$pip" --version >/dev/null 2>&1; then
        return # kept: the CPU and the CUDA set own the same files, so only a change of device starts anew
    fi
    system_python=$(find_python)
    say "making .venv with $system_python ($("$system_python" --version))"
    "$system_python" -m venv --clear .venv
}

# Where the CPU build of torch comes from: pip's own places, else uv's CPU index, else the ordinary build.
choose_torch() {
    local probe=(.venv/bin/uv pip install --python "$python" --dry-run --reinstall --no-deps --quiet torch==2.13.0+cpu)
    if UV_HTTP_RETRIES=0 "${probe[@]}" "${UV_ARGS[@]}" 2>/dev/null; then
        say "torch: CPU build from the places pip is configured for"
    elif UV_HTTP_RETRIES=0 "${probe[@]}" "${UV_ARGS[@]}" --torch-backend cpu 2>/dev/null; then
        say "torch: CPU build from PyTorch's index"
        UV_ARGS+=(--torch-backend cpu)
    else
        say "torch: no CPU build within reach, so the ordinary build (3 GB more on disk; it runs on the CPU all the same)"
    fi
}

install_packages() {
    if [ "$device" = cpu ]; then
        choose_torch
        UV_ARGS+=(--override scripts/overrides-cpu.txt)
    fi
    say "installing the $device set pinned in constraints.txt and constraints-$device.txt (about 4 GB on disk, 10 for gpu)"
    # Compiled now, once: a run starts a dozen processes, and where Python may not write (PYTHONDONTWRITEBYTECODE, an image,
    # somebody else's folder) each of them would compile torch, Ray and vLLM for itself: 22 s a process for vLLM, not 8.
    .venv/bin/uv pip install --python "$python" "${UV_ARGS[@]}" --compile-bytecode -r pyproject.toml --extra "$device" \
        --extra dev -c constraints.txt -c "constraints-$device.txt"
    .venv/bin/uv pip install --python "$python" "${UV_ARGS[@]}" --quiet --no-deps -e .
}

# A wheelhouse or an index of CPU builds among pip's own places wins over the ordinary, CUDA build of the same version.
check_cuda() {
    "$python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' 2>/dev/null && return
    say "torch $("$python" -c 'import importlib.metadata as m; print(m.version("torch"))') has no CUDA: it came from one of the places that pip is" \
        "configured for (.venv/bin/pip config list). Take that one away and run 'make setup' again" >&2
    return 1
}

warn_of_missing_compiler() {
    local what="DeepSpeed compiles an operator on first use"
    if [ "$device" = gpu ]; then what="torch and vLLM compile kernels for the GPU on first use"; fi
    command -v g++ >/dev/null || say "warning: no g++; $what (apt-get install g++)"
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
        || say "warning: no Python.h; $what (apt-get install python3-dev)"
}

make_venv
say "installing uv"
"$pip" install --quiet --disable-pip-version-check -c constraints.txt uv
uv_like_pip "$pip"
install_packages
if [ "$device" = gpu ]; then check_cuda; fi
warn_of_missing_compiler
say "done in ${SECONDS} s"

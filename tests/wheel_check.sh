#!/usr/bin/env bash
# Installs the wheel of the library, then that of the experiments, in a fresh environment, and tries them away from the
# source tree.
# usage: tests/wheel_check.sh WHEEL EXPERIMENTS_WHEEL [PYTHON]; TORCH says which torch, VENV which folder (kept);
# PHALANX_DATA, if set, has the data of draco-mnist
set -euo pipefail

wheel="$(realpath "$1")"
experiments="$(realpath "$2")"
python="${3:-python3}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
venv="${VENV:-$work/venv}"
data="${PHALANX_DATA:-}"
unset PYTHONPATH PHALANX_DATA
cd "$work"

refused() {
    if "$@"; then
        echo "this should have failed: $*"
        exit 1
    fi
}

test -x "$venv/bin/python" || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)
# torch first: alone, its newest build would bring several gigabytes of CUDA along
"${pip[@]}" install "${TORCH:-torch==2.13.0}"
"${pip[@]}" uninstall --yes phalanx-train phalanx-experiments matplotlib
"${pip[@]}" install "$wheel"
"${pip[@]}" check

phalanx="$venv/bin/phalanx"
"$phalanx" --version
where="$("$venv/bin/python" -c 'import phalanx; print(phalanx.__file__)')"
case "$where" in "$venv"/*) ;; *) echo "phalanx comes from $where, not from the wheel"; exit 1 ;; esac
"$phalanx" doctor
"$phalanx" run quickstart --scale smoke --out without 2> said
cat said
grep -q "pip install 'phalanx-train\[plots\]'" said
test ! -e without/plot.png
"$phalanx" list recipes > names
grep -q quickstart names
refused grep -q draco names
refused "$phalanx" reproduce --list 2> said
grep -q "No such command 'reproduce'" said
"$venv/bin/python" - << 'END'
import torch, phalanx as px
rows = torch.randn(15, 1000)
rows[3] = float("nan")
assert px.aggregators.krum(f=2).aggregate(rows).isfinite().all()
END

"${pip[@]}" install "${wheel}[plots]"
"$phalanx" run quickstart --scale "${SCALE:-smoke}" --out with
test -s with/plot.png
"$phalanx" compare with without

"${pip[@]}" install "$experiments"
"${pip[@]}" check
where="$("$venv/bin/python" -c 'import phalanx_experiments as pe; print(pe.__file__)')"
case "$where" in "$venv"/*) ;; *) echo "phalanx_experiments comes from $where, not from the wheel"; exit 1 ;; esac
"$phalanx" list recipes > names
grep -q draco-mnist names
"$phalanx" reproduce --list > list 2> said
grep -q "figure-7.6" list
refused grep -q "no committed results" said
"$phalanx" reproduce table-4.1 --show
"$phalanx" reproduce figure-7.6 --scale smoke --out figure
"$phalanx" reproduce --report --out site
grep -q "badge survives" site/index.html
"$phalanx" show draco-mnist --scale smoke --only "no attack" | grep "mnist(train=3000, test=500)"
if [ -n "$data" ]; then
    PHALANX_DATA="$data" "$phalanx" run draco-mnist --scale smoke --out draco
fi
echo "the wheels work with $("$venv/bin/python" --version)"

#!/usr/bin/env bash
# Installs a wheel in a fresh environment and tries it away from the source tree.
# usage: tests/wheel_check.sh WHEEL [PYTHON]; TORCH says which torch, VENV which folder (kept for the next time)
set -euo pipefail

wheel="$(realpath "$1")"
python="${2:-python3}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
venv="${VENV:-$work/venv}"
unset PYTHONPATH PHALANX_DATA
cd "$work"

test -x "$venv/bin/python" || "$python" -m venv "$venv"
# torch first: alone, its newest build would bring several gigabytes of CUDA along
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${TORCH:-torch==2.13.0}"
"$venv/bin/python" -m pip uninstall --quiet --yes --disable-pip-version-check phalanx-train matplotlib
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel"
"$venv/bin/python" -m pip check --disable-pip-version-check

phalanx="$venv/bin/phalanx"
"$phalanx" --version
where="$("$venv/bin/python" -c 'import phalanx; print(phalanx.__file__)')"
case "$where" in "$venv"/*) ;; *) echo "phalanx comes from $where, not from the wheel"; exit 1 ;; esac
"$phalanx" doctor
"$phalanx" run quickstart --scale smoke --out without 2> said
cat said
grep -q "pip install 'phalanx-train\[plots\]'" said
test ! -e without/plot.png

"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel[plots]"
"$phalanx" run quickstart --scale "${SCALE:-smoke}" --out with
test -s with/plot.png
"$phalanx" compare with without
"$phalanx" reproduce --list > list
grep -q "figure-7.6" list
! grep -q "no committed results" list
"$phalanx" reproduce --report --out site
grep -q "badge survives" site/index.html
"$venv/bin/python" - << 'END'
import torch, phalanx
rows = torch.randn(15, 1000)
rows[3] = float("nan")
assert phalanx.krum(f=2).aggregate(rows).isfinite().all()
END
echo "the wheel works with $("$venv/bin/python" --version)"

#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# This host's part in a job of several: host.sh RANK HOSTS MASTER FOLDER RECIPE [OPTION...]
# RANK 0 is on the host MASTER and keeps FOLDER. Started again on all hosts, it goes on where the run stopped.
set -euo pipefail

rank=$1 hosts=$2 master=$3 folder=$4 recipe=$5
shift 5

# the network card towards the other hosts; gloo and NCCL guess otherwise
card=${CARD:-$(ip -o route get "$(getent ahostsv4 "$master" | awk 'NR == 1 { print $1 }')" | sed 's/.* dev \([^ ]*\).*/\1/')}
if [ "$card" != lo ]; then
  export GLOO_SOCKET_IFNAME=$card NCCL_SOCKET_IFNAME=$card
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}

if [ -e "$folder/study.json" ]; then
  ask=(--resume "$folder")
else
  ask=("$recipe" --out "$folder")
fi
exec torchrun --nnodes "$hosts" --node-rank "$rank" --nproc-per-node 1 --master-addr "$master" --master-port 29500 \
  -m phalanx run "${ask[@]}" "$@"

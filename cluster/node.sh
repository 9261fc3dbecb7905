#!/usr/bin/env bash
# One machine with 8 GPUs, of AMD or NVIDIA: one process drives them all.
#
#   cluster/node.sh experiments/stages/pretrain_1.py runs/pretrain_1 [--config.train.steps=1000 ...]
#
# PROCESSES=8 starts a process for each GPU instead, MESH=data=4,expert=2 another mesh. A run that
# crashes or hangs starts again from its last checkpoint; Ctrl-C saves one and stops.
set -euo pipefail
cd "$(dirname "$0")/.."

config=${1:?the config: cluster/node.sh CONFIG WORKDIR [options]}
workdir=${2:?the run directory: cluster/node.sh CONFIG WORKDIR [options]}
shift 2

exec "${PYTHON:-.venv/bin/python}" launch.py train \
  --config="$config" --workdir="$workdir" --mesh="${MESH:-data=8}" \
  --spawn="${PROCESSES:-0}" --restarts="${RESTARTS:-3}" --watchdog_seconds=1800 "$@"

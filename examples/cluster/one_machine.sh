#!/usr/bin/env bash
# All GPUs of one machine, no cluster: rlabel starts a private Ray, with one actor a GPU, and ends it.
#   ./one_machine.sh PHOTOS MASKS.json NAMES.json RUN [more options of rlabel label]
set -euo pipefail
photos=$1 masks=$2 names=$3 run=$4
shift 4

rlabel label --images "$photos" --regions "$masks" --vocabulary "$names" --out "$run" --dtype bfloat16 "$@"
rlabel status "$run"

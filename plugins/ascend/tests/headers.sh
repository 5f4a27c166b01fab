#!/usr/bin/env bash
# Compares what src/symbols.rs declares with the public headers that the torch-npu wheel ships. They are fetched for the
# run and never kept.
# usage: plugins/ascend/tests/headers.sh [version of torch-npu]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip download -q --no-deps --only-binary=:all: -d "$work" "torch-npu${1:+==$1}"
python3 -m zipfile -e "$work"/*.whl "$work/wheel"
include=$(dirname "$(dirname "$(find "$work/wheel" -path '*acl/acl_rt.h' | sort | tail -1)")")
cc -std=gnu11 -Dconstexpr=const -Wno-deprecated-declarations -I"$include" "$here/headers.c" -o "$work/headers"
"$work/headers"
echo "declarations agree with $(basename "$work"/*.whl)"

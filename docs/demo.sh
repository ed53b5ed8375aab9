#!/usr/bin/env bash
# What `make demo` shows: the families that are installed, a tiny model trained from scratch, and what it says about itself.
set -euo pipefail
say() { printf '\n$ %s\n' "$*"; "$@"; }

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
say apr-train plugins
say apr-train --arch llama370m --preset tiny --steps "${DEMO_STEPS:-60}" --sequence-length 128 --batch-size 4 --out "$out"
say apr-train inspect "$out/llama370m-tiny/model.apr"
say apr-train validate "$out/llama370m-tiny/model.apr"

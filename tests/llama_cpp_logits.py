"""Logits of llama.cpp: `LLAMA_CPP_PYTHON tests/llama_cpp_logits.py GGUF IDS.json OUT.npy TEXT`; prints TEXT's ids as JSON.

Run by an interpreter that has llama-cpp-python and numpy. Keys and values are kept in float32, which is not the default.
"""

import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np

F32 = 0


def main(path, ids, out, text):
    ids = json.loads(Path(ids).read_text())
    model = llama_cpp.Llama(
        path, n_ctx=len(ids) + 8, n_batch=len(ids), logits_all=True, type_k=F32, type_v=F32, n_threads=2, verbose=False
    )
    model.eval(ids)
    np.save(out, model.scores[: len(ids)])
    has_tokens = model.metadata.get("tokenizer.ggml.model") != "none"
    sys.stdout.write(json.dumps(model.tokenize(text.encode(), add_bos=True, special=False) if has_tokens else []) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

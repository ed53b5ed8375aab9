"""Run llama.cpp's converter on a folder without a tokenizer: `python llama_cpp_convert.py LLAMA_CPP FOLDER TARGET`.

The converter insists on a vocabulary that it knows, and the tensors do not need one.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main(llama_cpp: str, folder: str, target: str) -> None:
    """Write `target`, a float32 GGUF of the Hugging Face folder."""
    sys.path[:0] = [llama_cpp, str(Path(llama_cpp) / "gguf-py")]
    import convert_hf_to_gguf as converter

    size = json.loads(Path(folder, "config.json").read_text())["vocab_size"]
    vocabulary = {str(index): index for index in range(size)}  # some converters count its entries
    Path(folder, "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    find = converter.get_model_class

    def without_vocabulary(*arguments: Any, **named: Any) -> Any:
        found = find(*arguments, **named)
        found.set_vocab = lambda self: None
        return found

    converter.get_model_class = without_vocabulary
    sys.argv = ["convert", folder, "--outfile", target, "--outtype", "f32"]
    converter.main()


if __name__ == "__main__":
    main(*sys.argv[1:])

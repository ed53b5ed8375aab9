"""Export the reference model of an example family, compare with llama.cpp's file: `python … NAME FOLDER`, JSON on stdout.

With IDS.json and OUT.npy behind, the reference model's logits of these tokens are written, too.
Run where the example families are installed: tests/test_gguf_export.py does.
"""

import importlib.util
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from apr_train.cli import cli
from click.testing import CliRunner

EXAMPLES = Path(__file__).parents[1] / "docs" / "families"


def contents(path):
    reader = gguf.GGUFReader(path)
    return {name: field.contents() for name, field in reader.fields.items()}, {item.name: item for item in reader.tensors}


def main(name, folder, ids=None, out=None):
    test = EXAMPLES / name / f"test_{name}.py"
    spec = importlib.util.spec_from_file_location(test.stem, test)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.reference(**getattr(module, "IN_GGUF", {}))
    model.save_pretrained(folder / "hf")
    if ids is not None:
        with torch.no_grad():
            np.save(out, model(input_ids=torch.tensor([json.loads(Path(ids).read_text())])).logits[0].numpy())
    command = ["export", str(folder / "hf"), "-o", str(folder / "ours.gguf"), "--format", "gguf", "--dtype", "f32"]
    done = CliRunner().invoke(cli, command)
    if done.exit_code:
        sys.stdout.write(json.dumps({"error": done.output}))
        return
    ours, our_tensors = contents(folder / "ours.gguf")
    theirs, their_tensors = contents(EXAMPLES / name / "llama-cpp.gguf")
    both = [key for key in their_tensors if key in our_tensors]
    apart = {key: [ours.get(key), theirs.get(key)] for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)}
    other = [
        key
        for key in both
        if our_tensors[key].tensor_type != their_tensors[key].tensor_type
        or not np.array_equal(our_tensors[key].data, their_tensors[key].data)
    ]
    only = sorted({*our_tensors} ^ {*their_tensors})
    sys.stdout.write(json.dumps({"keys": apart, "only": only, "other": other, "same": len(both), "output": done.output}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])

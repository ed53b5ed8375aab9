"""Example families through a GGUF and back, with every RoPE scaling: `python … FOLDER NAME…`, JSON on stdout.

Run where the example families are installed: tests/test_gguf_export.py does, and its slow neighbour. The answer is family →
kind of scaling → what came of it: `back`, or the field that the export refused.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
from apr_train.artifact.gguf.plan import differences
from apr_train.checkpoint.open import open_checkpoint
from apr_train.cli import cli
from apr_train.testing import installed_family
from click.testing import CliRunner

EXAMPLES = Path(__file__).parents[1] / "docs" / "families"
ORIGINAL = {"original_max_position_embeddings": 16}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.25, "high_freq_factor": 3.5, **ORIGINAL}
YARN = {"factor": 4.0, "beta_fast": 31.0, "beta_slow": 2.0, **ORIGINAL}


def scalings(rotated):
    """Kind → the numbers of a config.json, none of them the published ones; `longrope` leaves its factor to the lengths."""
    divisors = {
        "short_factor": [1 + 0.1 * n for n in range(rotated // 2)],
        "long_factor": [2.7 + n for n in range(rotated // 2)],
    }
    return {
        "none": {},
        "linear": {"rope_type": "linear", "factor": 2.5},
        "yarn": {"rope_type": "yarn", **YARN},
        "llama3": {"rope_type": "llama3", **LLAMA3},
        "longrope": {"rope_type": "longrope", **divisors, **ORIGINAL},
        "longrope with a factor": {"rope_type": "longrope", **divisors, "factor": 9.0, **ORIGINAL},
        "longrope with an attention factor": {"rope_type": "longrope", **divisors, "attention_factor": 1.3, **ORIGINAL},
    }


def through(folder, source):
    """Export and import a folder: `back` where config and tensors are those of an import without the way through GGUF."""
    run = CliRunner().invoke
    run(cli, ["import", str(source), "-o", str(folder / "straight.apr")])
    out = run(cli, ["export", str(source), "-o", str(folder / "m.gguf"), "--format", "gguf"])
    if out.exit_code:
        return next(iter(re.findall(r"\[(\S+)\]", out.output)), out.output)
    back = run(cli, ["import", str(folder / "m.gguf"), "-o", str(folder / "back.apr")])
    if back.exit_code:
        return back.output
    return compared(folder, installed_family(source.name))


def compared(folder, family):
    with open_checkpoint(folder / "back.apr") as back, open_checkpoint(folder / "straight.apr") as straight:
        configs = [family.build_config(header=each.header) for each in (straight, back)]
        if apart := differences(*configs):
            return str(apart)
        others = [
            name for name in straight.header.tensors if not same(straight.read(name).data, back.read(name).data, configs[0])
        ]
        return str(others) if others or back.header.tensors != straight.header.tensors else "back"


def same(ours, theirs, config):
    """To the bit; but a norm that a GGUF has with its offset added was rounded as that sum."""
    offset = getattr(config, "norm_offset", 0.0)
    return np.array_equal(ours, theirs) or (offset != 0 and ours.ndim == 1 and np.allclose(ours, theirs, rtol=0, atol=2**-23))


def main(folder, *names):
    found = {}
    for name in names:
        test = EXAMPLES / name / f"test_{name}.py"
        spec = importlib.util.spec_from_file_location(test.stem, test)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.reference(**getattr(module, "IN_GGUF", {}))
        model.save_pretrained(folder / name)
        plain = json.loads((folder / name / "config.json").read_text())
        parameters = plain.get("rope_parameters")
        if not parameters or "rope_theta" not in parameters:  # none, or one for each kind of layer
            found[name] = {"none": through(folder, folder / name)}
            continue
        head = plain.get("head_dim") or plain["hidden_size"] // plain["num_attention_heads"]
        found[name] = {}
        for kind, scaling in scalings(int(head * parameters.get("partial_rotary_factor", 1.0))).items():
            config = plain | {"rope_parameters": parameters | scaling, "max_position_embeddings": 64}
            config.pop("original_max_position_embeddings", None)  # Phi-3 has one outside of its scaling, too
            (folder / name / "config.json").write_text(json.dumps(config))
            found[name][kind] = through(folder, folder / name)
            for path in folder.glob("*.*"):
                path.unlink()
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

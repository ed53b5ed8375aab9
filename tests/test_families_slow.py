"""The example families where it takes longer: compiled, and converted anew by llama.cpp."""

import json
import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "families"
FAMILIES = sorted(path.parent.name for path in EXAMPLES.glob("*/pyproject.toml"))
OURS = ("codebert", "llama370m", "qwen2")
FILE = "llama-cpp.gguf"
CONVERTED = sorted(path.parent.name for path in EXAMPLES.glob(f"*/{FILE}"))
LLAMA_CPP = os.environ.get("LLAMA_CPP")
"""llama.cpp's folder with convert_hf_to_gguf.py: a checkout, or `vendor/llama.cpp` of llama-cpp-python's source package."""

pytestmark = pytest.mark.slow

BOTH = """
import json, sys, warnings
from pathlib import Path

warnings.simplefilter("ignore")  # torch.compile's own, of itself
from apr_train.run.folder import METRICS
from apr_train.run.json_lines import read_json_lines
from apr_train.testing import check_run, installed_family
from torch._dynamo.utils import counters

name, found = sys.argv[1], {}
for how in ("plain", "compiled"):
    folder = Path(how)
    folder.mkdir()
    run = check_run(installed_family(name), folder, compile=how == "compiled", document_mask=True, recompute=True)
    found[how] = list(read_json_lines(run / METRICS))
    found[how + " graphs"] = counters["stats"].get("unique_graphs", 0)
found["breaks"] = list(counters["graph_break"])
print(json.dumps(found))
"""
LEARNT = ("loss", "val_loss", "grad_norm", "aux_loss")
TOLERANCE = 1e-5
"""Relative; measured 3e-7 for losses, 2e-6 for the norm of the gradient."""


@pytest.mark.parametrize("name", [*FAMILIES, *OURS])
def test_a_compiled_family_learns_the_same_and_resumes_bit_for_bit(examples, tmp_path, name):
    """Masked documents, recomputed blocks, and an encoder's dropout too; `check_run` compares the resume."""
    done = examples.run(tmp_path, "-c", BOTH, name)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["plain graphs"] == 0
    assert found["compiled graphs"] > 0  # none would be blocks that are left alone
    assert all("grouped_loop" in reason for reason in found["breaks"])  # whose pieces' sizes are data
    assert len(found["plain"]) == len(found["compiled"]) >= 3
    for plain, compiled in zip(found["plain"], found["compiled"], strict=True):
        wanted = {key: plain[key] for key in LEARNT if key in plain}
        assert {key: compiled[key] for key in LEARNT if key in compiled} == pytest.approx(wanted, rel=TOLERANCE), plain["step"]


def contents(path):
    """Metadata and tensors of a GGUF, by gguf's own reader."""
    reader = gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    return metadata, {tensor.name: tensor for tensor in reader.tensors}


@pytest.mark.skipif(LLAMA_CPP is None, reason="LLAMA_CPP names no folder of llama.cpp; see tools/gguf_examples.py")
@pytest.mark.parametrize("name", CONVERTED)
def test_llama_cpps_converter_writes_the_kept_file_again(examples, tmp_path, name):
    done = examples.run(tmp_path, ROOT / "tools" / "gguf_examples.py", "--into", tmp_path, LLAMA_CPP, name)
    assert done.returncode == 0, done.stderr[-4000:]
    kept, written = EXAMPLES / name / FILE, tmp_path / name / FILE
    (metadata, tensors), (their_metadata, their_tensors) = contents(kept), contents(written)
    assert their_metadata == metadata
    assert list(their_tensors) == list(tensors)
    for tensor, data in tensors.items():
        other = their_tensors[tensor]
        assert (other.tensor_type, list(other.shape)) == (data.tensor_type, list(data.shape)), tensor
        assert np.array_equal(other.data, data.data), tensor
    assert written.read_bytes() == kept.read_bytes()

    shutil.copy(EXAMPLES / name / f"test_{name}.py", written.parent)  # which compares the file beside it with transformers
    options = ("-q", "-W", "error", "--import-mode=importlib", "-p", "no:cacheprovider", "-k", "llama_cpp")
    done = examples.run(tmp_path, "-m", "pytest", *options, written.parent)
    assert "1 passed" in done.stdout.splitlines()[-1], done.stdout[-4000:]

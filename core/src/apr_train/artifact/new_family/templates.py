"""The texts of a package's files; what stands in braces is put in by `package`, as literals."""

from __future__ import annotations

MODULE = '''"""The {title} family."""

from apr_train.family import {imports}

{card}
{presets}
{names}

{hooks}'''

HOOKS = """@hookimpl
def build_config(preset, header):
    return read_config(FAMILY, PRESETS, preset, header)


@hookimpl
def map_tensor_names(config, layout):
{refused}{fused}{answer}
"""

GGUF_REFUSED = """    if layout.names == "gguf":
        hint = "Compare with a file of llama.cpp first; then name its architecture in FAMILY.gguf_architectures."
        raise NameMapError("no GGUF of this family has been looked at", where="layout", hint=hint)
"""

FUSED_RULES = """    block = f"{{'' if layout.bare else FAMILY.base_prefix}}" + {blocks}
    add, drop = [], []
    for fused, parts in FUSED.items():
        bias = config.attention_bias if "self_attn.q_proj" in parts else config.mlp_bias
        for leaf, columns in (("weight", ["hidden_size"]), *([("bias", [])] if bias else [])):
            rows = [(f"layers.{{{{layer}}}}.{{stem}}.{{leaf}}", size) for stem, size in parts.items()]
            add.append(split(f"{{block}}{{fused}}.{{leaf}}", rows, *columns))
        drop += parts
"""

TEST = '''"""The {title} family keeps the contract, computes what another implementation does, and trains."""

import pytest
import torch
from apr_train.testing import check_family, check_reference, check_run, installed_family, randomize

transformers = pytest.importorskip("transformers")
{reference}
TOKENS = torch.randint(3, {vocabulary}, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def family():
    return installed_family({name})


def test_the_contract_is_kept(family):
    check_family(family)


@pytest.mark.skipif(CLASS is None, reason="transformers has no such class: compare with the model's own code")
def test_logits_gradients_and_files_are_those_of_transformers(family, tmp_path):
    config = CLASS.config_class(**CONFIG)
    reference = randomize(CLASS._from_config(config, attn_implementation="eager")).eval()
    check_reference(family, reference, TOKENS, tmp_path)


def test_a_run_resumes_bit_for_bit_and_is_evaluated(family, tmp_path):
    check_run(family, tmp_path, document_mask=True, recompute=True)
'''

REFERENCE = """CLASS = getattr(transformers, {classes}, None)
CONFIG = {config}"""

OWN_REFERENCE = '''

class {name}(transformers.LlamaForCausalLM):
    """What the family is compared with: a Llama, until its architecture is another."""


CLASS = {name}
CONFIG = {config}'''

README = """# {name}

A family for apr-train, written by `apr-train new-family`.

    pip install -e '.[test]'
    apr-train plugins
    pytest
    apr-train --arch {name} --preset tiny

{lists}## What no config and no shape says

When the comparison with another implementation fails and nothing is left above, it is one of these: an offset of the norms'
weights (`norm_offset`), scaled embeddings (`scale_embedding`), a rotation of adjacent pairs, the order of the rows in a fused
matrix, biases of a key whose value was false, a second rotary base, what the class takes for absent keys (`implied`).
## Its certificate

    apr-train verify {name} --against transformers -o {certificate}

measures the installed family and keeps what it saw; `apr-train plugins` shows it once the package is installed again, and
`apr-train verify {name} --check` is a line for CI.

## More

`DecoderConfig` documents every field; apr-train's docs/tutorial.md and docs/hooks.md are the guide.
"""

WORKFLOW = """name: test
on: [push, pull_request]
permissions:
  contents: read
jobs:
  test:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.11"
      - run: pip install '.[test]' ruff build
      - run: ruff check . && ruff format --check .
      - run: python -m build
      - run: pytest
"""

"""Which backend is taken, why not the others, and what is said about it."""

import subprocess
import sys

import attrs
import pytest
from apr_train.errors import AttentionError
from apr_train.family.decoder_config import DecoderConfig
from apr_train.model.attention import BACKEND_NAMES, AttentionBackend, Request, choose_backend, load_backend


def request_for(**changes):
    values = {"device": "cpu", "dtype": "F32", "query_heads": 14, "kv_heads": 2, "head_dim": 64, "mask": "causal"}
    return Request(**(values | changes))


class Own:
    """A family's own backend."""

    name = "own"

    def __init__(self, reason=None):
        self.reason = reason

    def supports(self, request):
        return self.reason

    def __call__(self, q, k, v, mask, *, dropout=0.0, scale=None, softcap=None):
        return q


def test_the_first_that_can_run_is_taken_and_the_reason_against_earlier_ones_kept():
    choice = choose_backend(["xformers", "sdpa", "eager"], request_for())
    assert choice.backend.name == "sdpa"
    assert choice.rejected == {"xformers": "it has no operator on cpu, only on cuda"}


def test_the_choice_reads_with_its_reasons():
    choice = choose_backend(["xformers", "sdpa"], request_for())
    assert str(choice) == "sdpa (first that can run); not xformers: it has no operator on cpu, only on cuda"


def test_a_forced_backend_that_cannot_run_is_an_error_with_its_reason():
    with pytest.raises(AttentionError, match="xformers cannot run here: it has no operator on cpu"):
        choose_backend(["sdpa"], request_for(), forced="xformers")


def test_a_forced_backend_wins_over_the_preferences():
    choice = choose_backend(["sdpa"], request_for(), forced="eager")
    assert choice.backend.name == "eager"
    assert choice.forced
    assert "as asked" in str(choice)


def test_an_unknown_name_is_an_error_with_the_closest_one():
    with pytest.raises(AttentionError, match=r"expected xformers, sdpa, eager, found sdpo\. .*sdpa"):
        choose_backend(["sdpa"], request_for(), forced="sdpo")


def test_no_backend_left_is_an_error_with_every_reason():
    with pytest.raises(AttentionError, match="own: on strike; xformers: it has no operator"):
        choose_backend([Own("on strike"), "xformers"], request_for())


def test_a_family_may_bring_and_force_its_own_backend():
    own = Own()
    assert isinstance(own, AttentionBackend)
    assert choose_backend([own, "sdpa"], request_for()).backend is own
    assert choose_backend(["sdpa", own], request_for(), forced="own").backend is own


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "no operator on cpu"),
        ({"device": "cuda", "dtype": "F64"}, "no operator for F64, only for F16, BF16, F32"),
        ({"device": "cuda", "softcap": 50.0}, "no soft cap (attn_logit_softcapping 50.0)"),
    ],
)
def test_xformers_says_why_not(changes, reason):
    assert reason in load_backend("xformers").supports(request_for(**changes))


def test_sdpa_says_why_not():
    assert load_backend("sdpa").supports(request_for(device="meta")) == "not tried on device meta"
    assert load_backend("sdpa").supports(request_for(mask="documents")) is None


@pytest.mark.parametrize("changes", [{}, {"training": False}, {"mask": "documents"}, {"dtype": "BF16"}, {"dtype": "F64"}])
def test_sdpa_has_soft_caps_for_causal_attention_on_a_cpu(changes):
    assert load_backend("sdpa").supports(request_for(softcap=50.0, **changes)) is None


@pytest.mark.parametrize(
    "changes",
    [{"device": "cuda"}, {"device": "cuda", "training": False}, {"mask": "bidirectional"}, {"dtype": "F16"}, {"dropout": 0.1}],
)
def test_without_a_soft_cap_sdpa_is_passed_over_with_the_value(changes):
    choice = choose_backend(["xformers", "sdpa", "eager"], request_for(softcap=50.0, **changes))
    assert choice.backend.name == "eager"
    assert choice.rejected["sdpa"].startswith(
        "it has no soft cap (attn_logit_softcapping 50.0) but for causal attention on cpu"
    )


def test_windows_and_scales_are_no_reason_against_torch():
    assert load_backend("sdpa").supports(request_for(device="cuda", window=4096, scale=0.1)) is None


@pytest.mark.parametrize("name", BACKEND_NAMES)
def test_the_cores_backends_satisfy_the_protocol(name):
    backend = load_backend(name)
    assert isinstance(backend, AttentionBackend)
    assert backend.name == name


CONFIG = DecoderConfig(
    vocab_size=10,
    hidden_size=56,
    num_hidden_layers=2,
    num_attention_heads=14,
    num_key_value_heads=2,
    intermediate_size=8,
    max_position_embeddings=8,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
)


def test_a_request_is_made_from_a_config():
    request = Request.for_config(CONFIG, device="cpu", dtype="BF16", mask="causal")
    assert (request.query_heads, request.kv_heads, request.head_dim, request.dropout) == (14, 2, 4, 0.0)
    assert (request.scale, request.softcap, request.window) == (0.5, None, None)


def test_a_request_says_what_gemma_2_needs():
    sliding = ("sliding_attention", "full_attention")
    config = attrs.evolve(
        CONFIG, query_pre_attn_scalar=256, attn_logit_softcapping=50.0, sliding_window=4096, layer_types=sliding
    )
    request = Request.for_config(config, device="cpu", dtype="BF16", mask="causal")
    assert (request.scale, request.softcap, request.window) == (0.0625, 50.0, 4096)
    full = attrs.evolve(config, layer_types=("full_attention",) * 2, sliding_window=None)
    assert Request.for_config(full, device="cpu", dtype="BF16", mask="causal").window is None


def test_asking_for_names_imports_neither_torch_nor_xformers():
    code = "import sys, apr_train.model.attention as a; "
    code += "print(a.BACKEND_NAMES[0], *(name in sys.modules for name in ('torch', 'xformers')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["xformers", "False", "False"]


def test_choosing_on_a_cpu_does_not_import_xformers():
    code = (
        "import sys; from apr_train.model.attention import *;"
        "r = Request(device='cpu', dtype='F32', query_heads=2, kv_heads=1, head_dim=8, mask='causal');"
        "print(choose_backend(['xformers', 'sdpa'], r).backend.name, 'xformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sdpa", "False"]

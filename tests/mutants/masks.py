"""Which keys a query sees: causality, documents, windows, padding, in each backend of the core that runs on a CPU."""

from tests.mutants.defect import Defect, core

CAUSAL = "model.attention.dense:causal"
ALLOWED = "model.attention.dense:allowed"

DEFECTS = (
    Defect("a query sees the next token", ("qwen2", "gpt2"), core(CAUSAL, "[:, None] + offset", "[:, None] + offset + 1")),
    Defect("a query does not see its own token", "qwen2", core(CAUSAL, "[:, None] + offset", "[:, None] + offset - 1")),
    Defect(
        "plain attention is not causal",
        "llama370m",
        core(CAUSAL, "return keys <= queries if", "return keys > -queries - 1 if"),
    ),
    Defect(
        "torch's attention is not causal",
        "llama370m",
        core("model.attention.sdpa:SdpaAttention.__call__", "is_causal=visible is None and", "is_causal=False and"),
    ),
    Defect(
        "hidden keys counted in the softmax",
        "llama370m",
        core(
            "model.attention.eager:_masked_softmax",
            ".masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1)",
            ".softmax(-1)",
        ),
    ),
    Defect("documents see one another", ("qwen2", "gemma2"), core(ALLOWED, "return same & causal(", "return causal(")),
    Defect(
        "a document sees its later tokens",
        "llama370m",
        core(ALLOWED, "return same & causal(query_length, key_length, 0, device, window)", "return same"),
    ),
    Defect(
        "no window inside documents",
        "starcoder2",
        core(ALLOWED, "causal(query_length, key_length, 0, device, window)", "causal(query_length, key_length, 0, device)"),
    ),
    Defect(
        "a window of one key more",
        ("starcoder2", "gemma2"),
        core(CAUSAL, "keys > queries - window", "keys >= queries - window"),
    ),
    Defect("no window", "starcoder2", core("model.attention.masks:windowed", "if window is None:", "if True:")),
    Defect(
        "no window in torch's attention under a soft cap",
        "gemma2",
        core(
            "model.attention.sdpa:SdpaAttention.__call__",
            "offset=_offset(mask), window=window,",
            "offset=_offset(mask), window=None,",
        ),
    ),
    Defect(
        "padding is seen", ("codebert", "bert"), core(ALLOWED, "return None if keep is None else", "return None if True else")
    ),
)

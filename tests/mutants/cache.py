"""The cache of keys and values: what generation computes differs from what training computed."""

from tests.mutants.defect import Defect, core

LAYER = "model.attention_layer:GroupedQueryAttention.forward"
APPEND = "model.cache:KeyValueCache.append"

DEFECTS = (
    Defect("the cache is filled and not used", ("llama370m", "gpt2"), core(LAYER, "k, v = cache.append(", "cache.append(")),
    Defect(
        "positions from zero behind a cache",
        ("qwen2", "gpt2"),
        core(
            "model.decoder:Decoder.hidden_states",
            "torch.arange(seen, seen + tokens.shape[1],",
            "torch.arange(0, tokens.shape[1],",
        ),
    ),
    Defect("values of the cache are its keys", "olmo2", core(APPEND, "pair[1][:, :end]", "pair[0][:, :end]")),
    Defect(
        "every row has the first row's keys",
        "qwen3",
        core(APPEND, "stored[:, start:end] = new", "stored[:, start:end] = new[:1]"),
    ),
    Defect(
        "several tokens at once do not see the cache",
        "qwen2",
        core(
            LAYER,
            "k, v = cache.append(self.layer, k, v)",
            "new = k.shape[1]\n            k, v = (x if new == 1 else x[:, -new:] for x in cache.append(self.layer, k, v))",
        ),
    ),
    Defect(
        "keys are stored of the first call only",
        "llama370m",
        core(
            APPEND,
            "for stored, new in zip(pair, (k, v), strict=True):",
            "for stored, new in zip(pair, (k * (start == 0), v), strict=True):",
        ),
    ),
    Defect(
        "the mask does not count the cache",
        ("qwen3", "starcoder2"),
        core(
            "model.attention.dense:allowed",
            "causal(query_length, key_length, offset, device, window)",
            "causal(query_length, key_length, 0, device, window)",
        ),
    ),
    Defect(
        "the window counts the cached keys twice",
        "starcoder2",
        core("model.attention.dense:causal", "keys > queries - window", "keys > queries - offset - window"),
    ),
    Defect(
        "one query sees all that is cached, whatever the window",
        "starcoder2",
        core("model.attention.sdpa:SdpaAttention.__call__", "if visible is None and window is not None:", "if False:"),
    ),
    Defect(
        "keys are cached before their rotation",
        "llama370m",
        (
            core(
                LAYER,
                "q, k = rotate(q, rotary), rotate(k, rotary)",
                "q, unrotated, k = rotate(q, rotary), k, rotate(k, rotary)",
            ),
            core(
                LAYER,
                "k, v = cache.append(self.layer, k, v)",
                "k, v = cache.append(self.layer, unrotated if k.shape[1] == 1 else k, v)",
            ),
        ),
    ),
)

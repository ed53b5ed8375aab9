"""The mathematics of each module: norms, rotation, attention, MLPs, experts, embeddings, the residual stream, the head."""

from tests.mutants.defect import Defect, core

NORM = "model.norms:RMSNorm.forward"
LAYER = "model.attention_layer:GroupedQueryAttention.forward"
BLOCK = "model.decoder:DecoderBlock.forward"
PREPARED = "        q, k = self.prepare_heads(q, k)\n"
ROTATED = "        if rotary is not None:\n            q, k = rotate(q, rotary), rotate(k, rotary)\n"
PROJECTIONS = "q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))\n"


def without_bias(name: str) -> str:
    """The projections, one of them computed a second time without its bias."""
    return (
        f"{PROJECTIONS}        {name} = nn.functional.linear(x, self.{name}_proj.weight).unflatten(-1, (-1, self.head_dim))\n"
    )


DEFECTS = (
    # norms
    Defect("RMSNorm with 1e-5, whatever the config says", ("qwen2", "gemma2"), core(NORM, "+ self.eps", "+ 1e-5")),
    Defect(
        "eps 1e-5 for 1e-6 in the last norm only",
        "qwen2",
        core(
            "model.decoder:Decoder.__init__",
            "self.norm = make_norm(config)",
            "self.norm = make_norm(config)\n        self.norm.eps = 1e-5",
        ),
    ),
    Defect(
        "eps 1e-5 for 1e-6 in the norms of q and k only",
        ("qwen3", "olmo2"),
        core("model.attention_layer:_heads_norm", "RMSNorm(size, config.rms_norm_eps,", "RMSNorm(size, 1e-5,"),
        reference={"rms_norm_eps": 1e-6},
    ),
    Defect(
        "RMSNorm takes the mean away first",
        "llama370m",
        core(NORM, "wide.pow(2).mean(-1, keepdim=True)", "wide.var(-1, keepdim=True, unbiased=False)"),
    ),
    Defect(
        "a Gemma's norm multiplies by the weight alone",
        "gemma2",
        core(NORM, "(self.offset + self.weight.to(wide.dtype))", "self.weight.to(wide.dtype)"),
    ),
    Defect(
        "q's norm serves k, too",
        "qwen3",
        core(
            "model.attention_layer:GroupedQueryAttention.prepare_heads",
            "self.k_norm(k)\n        if",
            "self.q_norm(k)\n        if",
        ),
    ),
    Defect(
        "q and k normed behind the rotation",
        "qwen3",
        core(
            LAYER,
            f"{PREPARED}{ROTATED}",
            f"{ROTATED}{PREPARED}",
        ),
    ),
    Defect(
        "an OLMo 2's norms stand before attention",
        "olmo2",
        core(
            BLOCK,
            "self._norm(after, self.self_attn(normed, rotary, mask, cache))",
            "self.self_attn(self._norm(after, normed), rotary, mask, cache)",
        ),
    ),
    # rotation
    Defect(
        "pairs of neighbours rotated",
        ("llama370m", "phi"),
        core(
            "model.rope:rotate",
            "first, second = x.to(cos.dtype).chunk(2, dim=-1)",
            "first, second = x.to(cos.dtype)[..., ::2], x.to(cos.dtype)[..., 1::2]",
        ),
    ),
    Defect(
        "rotation in the other direction",
        "llama370m",
        core(
            "model.rope:rotate",
            "(first * cos - second * sin, second * cos + first * sin)",
            "(first * cos + second * sin, second * cos - first * sin)",
        ),
    ),
    Defect("k not rotated", "qwen2", core(LAYER, "rotate(q, rotary), rotate(k, rotary)", "rotate(q, rotary), k")),
    Defect(
        "wavelengths of the hidden size",
        "llama370m",
        core("model.rope:inverse_frequencies", ".to(dtype) / config.rotary_dim", ".to(dtype) / config.hidden_size"),
    ),
    Defect(
        "whole heads rotated for a part",
        "phi",
        core(
            "family.decoder_config:DecoderConfig.rotary_dim",
            "return int(self.head_dim * self.partial_rotary_factor)",
            "return self.head_dim",
        ),
    ),
    Defect(
        "one rotary base for all layers",
        "gemma3",
        core("model.decoder:Decoder._rope_kind", 'return "local" if', 'return "global" if'),
    ),
    Defect(
        "layers with and without rotary positions the other way round",
        "smollm3",
        core(
            "family.decoder_config:DecoderConfig.has_rope", "self.no_rope_layers[layer] == 1", "self.no_rope_layers[layer] == 0"
        ),
    ),
    # attention
    Defect(
        "kv heads interleaved, not in blocks",
        ("qwen2", "llama370m"),
        (
            core(
                "model.attention.eager:EagerAttention.__call__",
                "q = q.reshape(batch, length, groups, heads // groups, head_dim)",
                "q = q.reshape(batch, length, heads // groups, groups, head_dim).transpose(2, 3)",
            ),
            core(
                "model.attention.eager:EagerAttention.__call__",
                "v.to(wide)).flatten(2, 3)",
                "v.to(wide)).transpose(2, 3).flatten(2, 3)",
            ),
        ),
    ),
    Defect("the bias of q dropped", "qwen2", core(LAYER, PROJECTIONS, without_bias("q"))),
    Defect("the bias of k dropped", "qwen2", core(LAYER, PROJECTIONS, without_bias("k"))),
    Defect("the bias of v dropped", "qwen2", core(LAYER, PROJECTIONS, without_bias("v"))),
    Defect(
        "no soft cap on attention scores",
        "gemma2",
        core("model.attention_layer:_options", "if config.attn_logit_softcapping is not None:", "if False:"),
    ),
    Defect(
        "attention scores with the usual scale",
        "granite",
        core("model.attention_layer:_options", "if config.attention_scale != config.head_dim**-0.5:", "if False:"),
    ),
    # MLPs
    Defect(
        "GELU's exact form for its tanh form", ("gemma2", "gpt2"), core("model.mlp:MLP.forward", "self.activation(", "F.gelu(")
    ),
    Defect(
        "GELU's tanh form for the exact one",
        "codebert",
        core(
            "model.mlp:MLP.forward",
            "self.activation(self.gate_proj(x) if self.gated else self.up_proj(x))",
            'F.gelu(self.up_proj(x), approximate="tanh")',
        ),
    ),
    Defect(
        "GELU's tanh form in an encoder's head",
        "bert",
        core(
            "model.encoder:MaskedHead.forward", "F.gelu(self.dense(hidden))", 'F.gelu(self.dense(hidden), approximate="tanh")'
        ),
    ),
    Defect(
        "the activation on up, not on gate",
        ("llama370m", "qwen3"),
        (
            core("model.mlp:MLP.forward", "self.gate_proj(x) if self.gated else self.up_proj(x))", "self.up_proj(x))"),
            core("model.mlp:MLP.forward", "inner * self.up_proj(x)", "inner * self.gate_proj(x)"),
        ),
    ),
    # experts
    Defect(
        "weights of the chosen experts not normalised",
        "mixtral",
        core("model.moe:SparseMLP.route", "if self.normalized:", "if False:"),
    ),
    Defect(
        "experts' outputs not put back into the tokens' order",
        "mixtral",
        core("model.moe:SparseMLP.forward", "(rows[back].unflatten", "(rows.unflatten"),
    ),
    Defect(
        "the activation on the experts' up, not on their gate",
        "mixtral",
        core(
            "model.moe:Experts.forward",
            "self.activation(grouped_linear(x, self.gate_proj, counts)) * grouped_linear(x, self.up_proj, counts)",
            "grouped_linear(x, self.gate_proj, counts) * self.activation(grouped_linear(x, self.up_proj, counts))",
        ),
    ),
    # embeddings, residual stream, head
    Defect(
        "a Gemma's embeddings not scaled",
        "gemma2",
        core("model.decoder:Decoder._embed", "if self.config.scale_embedding:", "if False:"),
    ),
    Defect(
        "learnt positions counted from one",
        "gpt2",
        core(
            "model.decoder:Decoder._embed",
            "self.embed_positions(positions)",
            "self.embed_positions((positions + 1) % self.config.max_position_embeddings)",
        ),
    ),
    Defect(
        "an encoder's positions counted from zero",
        "codebert",
        core(
            "model.encoder:position_ids",
            "return real.cumsum(dim=1) * real + pad",
            "return torch.arange(tokens.shape[1], device=tokens.device)[None]",
        ),
    ),
    Defect(
        "the token type left out",
        "bert",
        core("model.encoder:Embeddings.forward", " + self.token_type_embeddings.weight[0]", ""),
    ),
    Defect(
        "an encoder's norm before attention",
        "bert",
        core(
            "model.encoder:EncoderBlock.forward",
            "self.attention_norm(x + self.dropout(self.attention(x, mask)))",
            "x + self.dropout(self.attention(self.attention_norm(x), mask))",
        ),
    ),
    Defect(
        "the factor on what the MLP adds left out",
        "granite",
        core(
            BLOCK,
            "statistics\n        return self._add(x, self._norm(after, out))",
            "statistics\n        return x + self._norm(after, out)",
        ),
    ),
    Defect(
        "the MLP beside attention without their norm",
        "phi",
        core(BLOCK, "self.mlp(normed if self.parallel", "self.mlp(x if self.parallel"),
    ),
    Defect(
        "logits times the divisor",
        "granite",
        core("model.decoder:Decoder.head_scale", "self.config.logit_scale / self", "self.config.logit_scale * self"),
    ),
    Defect(
        "no soft cap on the logits",
        "gemma2",
        core("model.decoder:Decoder.head_softcap", "self.config.final_logit_softcapping", "None"),
    ),
    Defect(
        "a tied head that is a copy: its gradient does not reach the embedding",
        ("qwen2", "gpt2"),
        core(
            "model.decoder:Decoder.head_weight",
            "return self.embed_tokens.weight if",
            "return self.embed_tokens.weight.detach() if",
        ),
    ),
)

"""Answers of hooks: models, backends and modules of a family's own, findings, the card, what an import brings along."""

from tests.mutants.defect import Defect, builds, plugin

MAP = "@hookimpl\ndef map_tensor_names("

DEFECTS = (
    Defect(
        "a logits() that the loss does not use",
        "qwen3",
        builds("""
from apr_train.model import Decoder, head_logits

class Sharpened(Decoder):
    def logits(self, hidden):
        return 2.0 * head_logits(self, hidden)

return Sharpened(config, attention)
"""),
    ),
    Defect(
        "a model of the family's own that is not causal",
        ("olmo2", "gpt2"),
        builds("""
from apr_train.model import Bidirectional, Decoder

class Seeing(Decoder):
    def hidden_states(self, tokens, *, mask, positions=None, cache=None, losses=None):
        mask = mask if cache is not None else Bidirectional()
        return super().hidden_states(tokens, mask=mask, positions=positions, cache=cache, losses=losses)

return Seeing(config, attention)
"""),
    ),
    Defect(
        "a model of the family's own that ignores the document mask",
        ("qwen3", "llama370m"),
        builds("""
from apr_train.model import Causal, Decoder, Documents

class Packed(Decoder):
    def hidden_states(self, tokens, *, mask, positions=None, cache=None, losses=None):
        mask = Causal() if isinstance(mask, Documents) else mask
        return super().hidden_states(tokens, mask=mask, positions=positions, cache=cache, losses=losses)

return Packed(config, attention)
"""),
    ),
    Defect(
        "a model of the family's own that fills the cache and does not use it",
        "qwen3",
        builds("""
from apr_train.model import Decoder, DecoderBlock, GroupedQueryAttention

class Forgetful:
    def __init__(self, cache):
        self.cache = cache

    def append(self, layer, k, v):
        self.cache.append(layer, k, v)
        return k, v

class Attention(GroupedQueryAttention):
    def forward(self, x, rotary, mask, cache=None):
        return super().forward(x, rotary, mask, None if cache is None else Forgetful(cache))

class Block(DecoderBlock):
    attention_class = Attention

return Decoder(config, attention, Block)
"""),
    ),
    Defect(
        "a block of the family's own with another eps in one norm",
        "qwen3",
        builds("""
from apr_train.model import Decoder, DecoderBlock

class Block(DecoderBlock):
    def __init__(self, config, backend, layer):
        super().__init__(config, backend, layer)
        self.input_layernorm.eps = 1e-5

return Decoder(config, attention, Block)
"""),
    ),
    Defect(
        "an encoder of the family's own that sees the padding",
        "bert",
        builds("""
from apr_train.model import Bidirectional, Encoder

class Seeing(Encoder):
    def hidden_states(self, tokens, *, mask, positions=None, cache=None, losses=None):
        return super().hidden_states(tokens, mask=Bidirectional(), positions=positions, cache=cache, losses=losses)

return Seeing(config, attention)
"""),
    ),
    Defect(
        "a model of the family's own whose rows depend on one another",
        "olmo2",
        builds("""
from apr_train.model import Decoder

class Mixing(Decoder):
    def hidden_states(self, tokens, *, mask, positions=None, cache=None, losses=None):
        hidden = super().hidden_states(tokens, mask=mask, positions=positions, cache=cache, losses=losses)
        return hidden - 0.1 * hidden.mean(0, keepdim=True)

return Mixing(config, attention)
"""),
    ),
    Defect(
        "a model of the family's own that drops at random when it is evaluated, too",
        "starcoder2",
        builds("""
from apr_train.model import Decoder
from torch.nn import functional as F

class Dropping(Decoder):
    def hidden_states(self, tokens, *, mask, positions=None, cache=None, losses=None):
        return F.dropout(super().hidden_states(tokens, mask=mask, positions=positions, cache=cache, losses=losses), 0.1)

return Dropping(config, attention)
"""),
    ),
    Defect(
        "a model of the family's own without a gradient for its embedding",
        "olmo2",
        builds("""
from apr_train.model import Decoder

class Frozen(Decoder):
    def _embed(self, tokens, positions):
        return super()._embed(tokens, positions).detach()

return Frozen(config, attention)
"""),
    ),
    Defect(
        "a model of the family's own that allocates memory",
        "qwen2",
        builds("""
import torch
from apr_train.model import Decoder

model = Decoder(config, attention)
model.norm.weight = torch.nn.Parameter(torch.ones(config.hidden_size, device="cpu"))
return model
"""),
    ),
    Defect(
        "a model of the family's own with a parameter that no rule fills",
        "qwen2",
        builds("""
from apr_train.model import Decoder
from torch import nn

model = Decoder(config, attention)
model.extra = nn.Linear(config.hidden_size, 1)
return model
"""),
    ),
    Defect(
        "a backend of the family's own that is not causal",
        "qwen2",
        plugin(
            MAP,
            """@hookimpl
def attention_impl(config):
    from apr_train.model.attention.eager import EagerAttention
    from apr_train.model import Bidirectional, Causal

    class Seeing(EagerAttention):
        name = "seeing"

        def __call__(self, q, k, v, mask, **options):
            return super().__call__(q, k, v, Bidirectional() if isinstance(mask, Causal) else mask, **options)

    return [Seeing()]


"""
            + MAP,
        ),
    ),
    Defect(
        "a list of backends that is empty",
        "olmo2",
        plugin(MAP, "@hookimpl\ndef attention_impl(config):\n    return []\n\n\n" + MAP),
    ),
    Defect("a hook without its mark", "granite", plugin("@hookimpl\ndef map_tensor_names(", "def map_tensor_names(")),
    Defect(
        "validate_family raises for an empty file",
        "qwen3",
        plugin(
            MAP,
            '@hookimpl\ndef validate_family(header, objective):\n    header.tensors["model.norm.weight"]\n    return []\n\n\n'
            + MAP,
        ),
    ),
    Defect(
        "validate_family refuses a sound file",
        "codebert",
        plugin("isinstance(pad, int) or rows > pad + 1:", "isinstance(pad, int) or rows < pad + 1:"),
    ),
    Defect(
        "torch imported with the plugin",
        "phi",
        plugin(
            "from apr_train.family import DecoderConfig",
            "import torch  # noqa: F401\nfrom apr_train.family import DecoderConfig",
        ),
    ),
    Defect("an encoder's objective for a decoder", "gpt2", plugin('objectives=("causal-lm",)', 'objectives=("masked-lm",)')),
    Defect(
        "a Hugging Face class on the card that is another's",
        "starcoder2",
        plugin('"Starcoder2ForCausalLM", "Starcoder2Model"', '"StarcoderForCausalLM", "StarcoderModel"'),
    ),
    Defect(
        "a block of the family's own that is called past its hooks",
        "qwen3",
        builds("""
from apr_train.model import Decoder, DecoderBlock

class Inner(DecoderBlock):
    def around(self, *arguments):
        return DecoderBlock.forward(self, *arguments)

class Around(Decoder):
    def hidden_states(self, *arguments, **named):
        for block in self.layers:
            block.__dict__["_call_impl"] = block.around
        return super().hidden_states(*arguments, **named)

return Around(config, attention, block=Inner)
"""),
    ),
    Defect(
        "a parameter of a block that is used outside of it",
        "llama370m",
        builds("""
from apr_train.model import Decoder

class Reading(Decoder):
    def hidden_states(self, *arguments, **named):
        scale = self.layers[0].mlp.up_proj.weight.mean()
        return super().hidden_states(*arguments, **named) * (1 + scale)

return Reading(config, attention)
"""),
    ),
)

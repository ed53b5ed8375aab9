"""Start values of a training from scratch."""

from tests.mutants.defect import Defect, core

FILL = "model.init:_fill"
CONSTANT = "model.init:_constant"

DEFECTS = (
    Defect(
        "LayerNorm starts at zero",
        ("starcoder2", "bert"),
        core(CONSTANT, "return 1.0 if isinstance", "return 0.0 if isinstance"),
    ),
    Defect(
        "a Gemma's norms start at one above one",
        "gemma2",
        core("model.norms:RMSNorm.initial_value", "return 1.0 - self.offset", "return 1.0"),
    ),
    Defect("biases start at one", ("starcoder2", "codebert"), core(CONSTANT, "return 0.0\n", "return 1.0\n")),
    Defect("matrices drawn fifty times too wide", "qwen2", core(FILL, "normal_(0.0, std,", "normal_(0.0, 1.0,")),
    Defect(
        "experts start at zero", "mixtral", core("model.moe:Experts.initial_value", "        return\n", "        return 0.0\n")
    ),
    Defect(
        "the generator is not used",
        "llama370m",
        core(FILL, "drawn.normal_(0.0, std, generator=generator)", "drawn.normal_(0.0, std)"),
    ),
    Defect(
        "every matrix is drawn from the same seed",
        "qwen3",
        core(FILL, "generator=generator)", "generator=generator.manual_seed(0))"),
    ),
    Defect(
        "matrices drawn around their deviation, not around zero", "olmo2", core(FILL, "normal_(0.0, std,", "normal_(std, std,")
    ),
    Defect(
        "the word of the padding is drawn",
        "bert",
        core(FILL, "if isinstance(owner, nn.Embedding) and owner.padding_idx is not None:", "if False:"),
    ),
    Defect(
        "matrices drawn evenly, not normally",
        "gpt2",
        core(FILL, "drawn.normal_(0.0, std, generator=generator)", "drawn.uniform_(-std, std, generator=generator)"),
    ),
    Defect(
        "matrices that are not square start at zero",
        "olmo2",
        core(
            FILL,
            "value = _constant(owner, leaf)",
            "value = 0.0 if parameter.ndim == 2 and parameter.shape[0] != parameter.shape[1] else _constant(owner, leaf)",
        ),
    ),
)

"""The loss that training computes in pieces, against the logits that everything else uses."""

from tests.mutants.defect import Defect, core

HEAD = "model.loss:head_loss"
FORWARD = "model.loss:_FusedLinearCrossEntropy.forward"
STEP = "model.loss:_softmax_step_eager"

DEFECTS = (
    Defect(
        "the head's bias is not in the loss",
        ("codebert", "phi"),
        core(FORWARD, "logits if offset is None else logits.add_(offset)", "logits"),
    ),
    Defect(
        "the factor on the logits is not in the loss", "granite", core(HEAD, "head_scale=model.head_scale", "head_scale=1.0")
    ),
    Defect("the soft cap is not in the loss", "gemma2", core(HEAD, "head_softcap=model.head_softcap", "head_softcap=None")),
    Defect(
        "the soft cap is not in the loss's gradient",
        "gemma2",
        core(STEP, "    if tanh is not None:\n        wide.addcmul_", "    if False:\n        wide.addcmul_"),
    ),
    Defect(
        "what stands before the head's matrix is not in the loss",
        "bert",
        core(HEAD, "inputs = model.head_input(hidden)", "inputs = hidden"),
    ),
    Defect("the factor on the logits is not in the loss's gradient", "granite", core(FORWARD, "scale * head_scale)", "scale)")),
    Defect(
        "the head's bias gets no gradient",
        "codebert",
        core("model.loss:_Gradients.add", "alpha=scale)\n        self.started", "alpha=0)\n        self.started"),
    ),
    Defect(
        "positions that do not count are counted",
        ("llama370m", "codebert"),
        core(
            "model.loss:chunked_cross_entropy",
            "hidden, targets = hidden[kept], targets[kept]",
            "targets = targets.clamp(min=0)",
        ),
    ),
    Defect(
        "only the first piece is in the weight's gradient",
        "qwen2",
        core(
            FORWARD,
            "gradients.add(rows, logits, piece, matrix,",
            "gradients.add(rows, logits, piece * (start == 0), matrix,",
        ),
    ),
    Defect(
        "the last piece is left out of the loss",
        "qwen2",
        core(
            FORWARD,
            "loss += step(logits, targets[rows], head_scale, softcap)",
            "loss += step(logits, targets[rows], head_scale, softcap) * (start == 0)",
        ),
    ),
    Defect("the loss forgets its factor", "llama370m", core(FORWARD, "return loss * scale", "return loss")),
    Defect(
        "the balancing loss without the number of experts",
        "mixtral",
        core("model.moe:load_balancing_loss", "return counts.numel() * (", "return ("),
    ),
    Defect(
        "the balancing loss of the last layer only",
        "mixtral",
        core("model.decoder:Decoder.hidden_states", "load_balancing_loss(statistics,", "load_balancing_loss(statistics[-1:],"),
    ),
)

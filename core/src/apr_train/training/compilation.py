"""Whether a run's blocks are compiled where the user does not say: when it saves more time than it takes."""

from __future__ import annotations

from apr_train.family.config import ModelConfig
from apr_train.family.flops import training_flops
from apr_train.run.settings import Settings

PAYS = {"cpu": 6e13, "cuda": 1e16}
"""Operations of a run from which on compiling pays: for each CPU thread, or for each CUDA device.

Measured on one thread with AVX-512 bf16, SmolLM2's shape at 2 × 512 tokens (10^12 operations a step): a compilation took the
processor time of two to five steps, and saved a third of each in bf16, a fourteenth in float32. What a clock says is not
asked, nor whether an earlier run has left its graphs behind: the same command has to learn the same each time.
"""


def pays(settings: Settings, config: ModelConfig, *, device: str, length: int, batch_size: int, workers: int) -> bool:
    """Whether the operations of all steps of a run are so many that a compilation is worth its time.

    Args:
        settings: steps and accumulation are read.
        config: a model whose operations cannot be counted is not compiled.
        device: `cpu` or `cuda`.
        length: tokens of a row.
        batch_size: rows of a pass.
        workers: CPU threads or CUDA devices, of all processes.
    """
    counted = training_flops(config, length=length)
    if counted is None:
        return False
    tokens = length * batch_size * settings.data.accumulate * settings.run.steps
    return counted.of_step(tokens, tokens) >= PAYS[device] * workers

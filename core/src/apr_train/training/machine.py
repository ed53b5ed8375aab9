"""What a run needs of its machine a token, and what that can do at most: known before the first step."""

from __future__ import annotations

from apr_train.family.flops import training_flops
from apr_train.model.peak import device_name, device_peak
from apr_train.preflight.adapter_rules import trained_parameters
from apr_train.preflight.report import Cleared
from apr_train.run.machine import Machine
from apr_train.training.defaults import Decided


def machine_of(decided: Decided, cleared: Cleared) -> Machine:
    """Count the operations by the config, and find the peak of the device: of a CPU that takes a tenth of a second."""
    settings, config = decided.settings, cleared.config
    adapters = trained_parameters(settings.lora, cleared.family, config)
    return Machine(
        device=device_name(decided.device),
        precision=decided.precision.name,
        threads=settings.run.threads,
        flops=training_flops(config, length=decided.sequence_length, adapter_parameters=adapters),
        peak=device_peak(decided.device, decided.precision, asked=settings.run.peak_tflops),
    )

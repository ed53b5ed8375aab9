"""What can be asked of an optimizer, by name."""

from __future__ import annotations

from typing import Literal

OptimizerName = Literal["adamw", "muon"]
MuonAdjustment = Literal["match-rms-adamw", "original"]
"""Names of torch.optim.Muon's `adjust_lr_fn`, spelt as options are."""
Bf16Update = Literal["stochastic", "master", "nearest"]
"""How an update comes into a bfloat16 weight: rounded stochastically, in a float32 master copy, or rounded to nearest."""

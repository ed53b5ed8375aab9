"""How weights are updated: which optimizer has which parameters, and what is saved of it.

`make` decides and makes, `bfloat16` is for weights of 8 bits of mantissa, `state` is for checkpoints.
"""

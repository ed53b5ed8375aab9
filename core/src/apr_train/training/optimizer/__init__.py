"""How weights are updated: which optimizer has which parameters, and what is saved of it.

`make` decides and makes, `bfloat16` is for weights of 8 bits of mantissa, `whole_matrices` for sharded ones that are updated
whole, `state` is for checkpoints.
"""

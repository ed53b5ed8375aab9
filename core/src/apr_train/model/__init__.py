"""The mathematics: norms, rotary positions, attention, MLPs, the decoder and the encoder, the loss."""

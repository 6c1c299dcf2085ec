"""PHALAR: the encoder that keeps musical phase, its checkpoints, and the audio that goes into it."""

"""PHALAR: at the top the encoder that keeps musical phase, and nothing else; in the rooms what it lives on.

This file imports nothing, and so others import what they use from the room, or the module, that has it: a process that
only decodes audio, or prints a command's help, shall not load torch.

    model.phalar, model.device     the encoder, and the device that it runs on
    model.audio                    file -> waveform -> windows; the beat grid, the key
    model.checkpoints              load, save, convert, average
    model.demo                     music that a program writes
    model.training                 stems -> examples -> a model; `phalar train`
    model.evaluation               the protocols, and the systems that they measure; `phalar evaluate`
"""

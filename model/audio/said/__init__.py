"""What a file says of its tempo, beats and key: in its tags, its chunks and its name."""

from model.audio.said.facts import Said
from model.audio.said.file import exact_tempo, said_of_file

__all__ = ["Said", "exact_tempo", "said_of_file"]

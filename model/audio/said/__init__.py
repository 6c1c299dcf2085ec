"""What a file says of its tempo, beats and key: in its tags, its chunks and its name."""

from model.audio.said.chunks import said_of_chunks
from model.audio.said.facts import MOST_BEATS, Kind, Said, is_tempo, key_of_text, key_parts, said_by, transposed_key
from model.audio.said.file import exact_tempo, joined, said_of_file, said_of_tags
from model.audio.said.name import said_of_name

"""Music that a program writes and plays: for the demo catalog, for the tests, and to train on."""

from model.demo.compose import compose_files, compose_track
from model.demo.synthesis import Note
from model.demo.track import ComposedStem, Track, write_track

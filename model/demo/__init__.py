"""Music that a program writes and plays: for the demo catalog, for the tests, and to train on."""

from model.demo.compose import ComposedStem, Track, compose_track, write_track
from model.demo.synthesis import Note

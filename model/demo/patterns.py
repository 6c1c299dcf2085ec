"""What the stems of a track are written with: metres, drum patterns, and the rhythms of bass, keys and lead.

A tick is the grid's unit: a quarter of the beat in 4/4 and 3/4, a sixth of it (the dotted quarter) in 6/8.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.demo.synthesis import CLAP, HAT, KICK, OPEN_HAT, RIDE, RIM, SHAKER, SNARE


@dataclass(frozen=True)
class Metre:
    beats: int
    ticks_per_beat: int
    tempi: tuple[int, int]  # slowest and fastest

    @property
    def ticks(self) -> int:
        return self.beats * self.ticks_per_beat


METRES = {"4/4": Metre(4, 4, (76, 132)), "3/4": Metre(3, 4, (88, 144)), "6/8": Metre(2, 6, (54, 78))}


@dataclass(frozen=True)
class Pattern:
    """A drum pattern of one bar: lanes of one character a tick.

    X accent, x plain, o ghost, ? a ghost now and then, . nothing.
    """

    style: str
    metre: str
    lanes: dict[int, tuple[str, ...]]  # a drum's alternatives, one drawn for each section
    swing: float = 0.0  # of half a pair: 1/3 is a triplet
    swing_ticks: int = 1  # what is swung: 1 sixteenths, 2 eighths


PATTERNS = (
    Pattern("house", "4/4", {
        KICK: ("X...X...X...X...", "X...X...X...X.?."),
        CLAP: ("....X.......X...",),
        OPEN_HAT: ("..x...x...x...x.", "..x...x...x...xo"),
        SHAKER: ("o.xoo.xoo.xoo.xo", "oo?xoo?xoo?xoo?x"),
    }),
    Pattern("backbeat", "4/4", {
        KICK: ("X.....x.X.x.....", "X.....xxX.....?.", "X..x....X.x...?."),
        SNARE: ("....X.......X..?", "....X..?....X..."),
        HAT: ("X.o.X.o.X.o.X.o.", "x.x.x.x.x.x.x.x?"),
    }),
    Pattern("boom bap", "4/4", {
        KICK: ("X..x....?.X..x..", "X.x....x..X....?", "X......x.xX....."),
        SNARE: ("....X..?.?..X...", "....X.....?.X..o"),
        HAT: ("x.x.x.xox.x.x.x.", "X.o.X.ooX.o.X.o?"),
    }, 0.24),
    Pattern("half-time", "4/4", {
        KICK: ("X.....?...x..x..", "X..x..x.......x.", "X.......?.x....."),
        SNARE: ("........X.......", "........X.....?."),
        HAT: ("x.x.xoxox.x.x.xx", "xoxoxoxoxoxoxxxo"),
        RIM: ("......?.......?.",),
    }),
    Pattern("breakbeat", "4/4", {
        KICK: ("X.X.......XX....", "X.x.......x..x..", "X..x..x...X....."),
        SNARE: ("....X..o.o..X..o", "....X..o.o....X."),
        HAT: ("x.x.x.x.x.x.x.x.", "X.x.X.x.X.x.X.x."),
    }, 0.1),
    Pattern("bossa", "4/4", {
        KICK: ("X..xX..xX..xX..x", "X..xX...X..xX..?"),
        RIM: ("x..x..x...x..x..", "x..x...x..x..x.."),
        HAT: ("x.o.x.o.x.o.x.o.",),
        SHAKER: ("oooxoooxoooxooox", "o.xoo.xoo.xoo.xo"),
    }),
    Pattern("swing", "4/4", {
        KICK: ("x...o...x...o...", "x...o...x.o.o..."),
        RIDE: ("X...x.xoX...x.x.", "X...x.x.X.o.x.x."),
        HAT: ("....x.......x...",),
        SNARE: ("..?...o.......?.", "......?...?...o."),
    }, 0.3, 2),
    Pattern("waltz", "3/4", {
        KICK: ("X...........", "X.........?."),
        RIM: ("....x...x...", "....x...x.?."),
        HAT: ("x.o.x.o.x.o.", "x...x.o.x.o."),
    }, 0.18, 2),
    Pattern("three-four", "3/4", {
        KICK: ("X.....x.....", "X..x........", "X.....x..?.."),
        SNARE: ("........X...", "....o...X..?"),
        HAT: ("X.o.x.o.x.o.", "x.xox.xox.xo"),
    }),
    Pattern("six-eight", "6/8", {
        KICK: ("X.........x.", "X...?.....x.", "X.x.......?."),
        SNARE: ("......X.....", "......X...?."),
        HAT: ("X.o.o.X.o.o.", "x.o.oox.o.oo"),
    }),
    Pattern("afro six", "6/8", {
        KICK: ("X...x.X...x.", "X.....X...x."),
        RIM: ("x.x..x.x.x..", "x..x.x..x.x."),
        SHAKER: ("X.o.x.X.o.x.", "xoooxoxoooxo"),
    }),
)  # fmt: skip
ACCENTS = {"X": 1.0, "x": 0.78, "o": 0.42, "?": 0.4}
# Durations in ticks of one beat's notes; negative is a rest.
CELLS = {
    4: ((4,), (2, 2), (2, 2), (3, 1), (2, 1, 1), (-2, 2), (1, 1, 2), (-1, 3)),
    6: ((6,), (4, 2), (2, 2, 2), (2, 4), (-2, 2, 2), (3, 3), (-4, 2)),
}
COMPS = {
    "4/4": ("x.....x...x.....", "..x...x...x...x.", "x..x..x...x..x..", "....x.......x.x.", "x.....x.........",
            "x..x......x.x..."),
    "3/4": ("....x...x...", "x.....x.x...", "....x.x.x..."),
    "6/8": ("x...x.x...x.", "..x.x...x.x.", "x.....x...x."),
}  # fmt: skip
BASS_RHYTHMS = {
    "4/4": ("x..x..x...x.x...", "x.....x.x..x....", "x..x....x..x..x.", "x...x.x...x.x.x."),
    "3/4": ("x.....x...x.", "x...x...x...", "x..x....x.x."),
    "6/8": ("x...x.x...x.", "x.....x.x.x.", "x..x..x...x."),
}
BASS_STYLES = {
    "4/4": ("locked", "locked", "eighths", "octaves", "sustained", "riff"),
    "3/4": ("locked", "sustained", "riff", "walking"),
    "6/8": ("locked", "sustained", "riff", "eighths"),
}

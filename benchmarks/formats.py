"""What becomes of every kind of audio file that the tests make: where it is heard, or what refuses it.

    python -m benchmarks.formats --page docs/formats.md

The files are those of tests/audio_files.py and tests/audio_faults.py.
"""

import av
import soundfile

from benchmarks.page import page_parser, publish
from model.audio import HEAD, AudioError, demuxer_of, load_clip
from model.evaluation.results import markdown_table
from tests.audio_faults import FAULTS
from tests.audio_files import ROWS, SECONDS, Row, cells_of, place_and_likeness


def heard(row: Row) -> list[str]:
    """A line of the table: the worst of all files of a row."""
    cells = cells_of([row])
    late, longer = [], []
    for cell in cells:
        data = cell.bytes()
        clip = load_clip(data)
        late.append(1000 * place_and_likeness(clip.waveform)[0])
        longer.append(1000 * (clip.duration_s - SECONDS))
    by = "libsndfile" if demuxer_of(row.format, data[:HEAD]) is None else "FFmpeg"
    return [
        f"{row.container}: {row.codec}",
        row.format,
        by,
        ", ".join(map(str, row.channels)),
        ", ".join(f"{rate / 1000:g}" for rate in row.rates),
        f"{max(late, key=abs) + 0:+.2f}".replace("-0.00", "+0.00"),
        f"{min(longer):+.0f}"
        if round(min(longer)) == round(max(longer))
        else f"{min(longer):+.0f} to {max(longer):+.0f}",
    ]


def main() -> None:
    arguments = page_parser(__doc__).parse_args()
    header = ["what", "`format`", "by", "channels", "kHz", "late, ms", "longer, ms"]
    ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
    by = f"libsndfile {soundfile.__libsndfile_version__}; FFmpeg {av.ffmpeg_version_info} (libavcodec {ffmpeg}) "
    by += f"of PyAV {av.__version__}"
    table = markdown_table(header, [heard(row) for row in ROWS])
    publish(f"{len(cells_of(ROWS))} files; {by}.\n\n{table}", arguments.page, "formats")
    rows = []
    for fault in FAULTS:
        try:
            clip = load_clip(fault.data())
            said = " ".join(clip.warnings) or f"heard, {clip.duration_s:.1f} s"
        except AudioError as error:
            said = f"refused ({error.code}): {str(error).partition(', not audio in')[0]}"
        rows.append([fault.name, said])
    publish(markdown_table(["what", "what comes of it"], rows).replace("---:", "---"), arguments.page, "faults")


if __name__ == "__main__":
    main()

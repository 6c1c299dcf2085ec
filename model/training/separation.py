"""Harmonic/percussive separation of a spectrogram by medians, batched in torch; the front end of COCOLA.

Fitzgerald's method (DAFx 2010) as `librosa.decompose.hpss` does it: a tone is a ridge along time and survives a median
over time, a click is a ridge along frequency and survives a median over frequency; each becomes a soft mask.
"""

import torch
from torch import Tensor
from torch.nn import functional

COLUMNS_AT_ONCE = {"cpu": 128}
"""Columns that one pass of the medians takes, by kind of device: more fall out of a CPU's caches."""

COLUMNS_ELSEWHERE = 16_384
"""The same on an accelerator, where it bounds memory: some 50 arrays of this width live at once."""


WIDTH = 31
"""Of both medians, frames and bins; odd."""


def separate(magnitude: Tensor) -> tuple[Tensor, Tensor]:
    """Split magnitudes into what holds its frequency and what holds its time.

    Args:
        magnitude: float32, (batch, bins, frames), not negative; more than WIDTH // 2 bins and frames.

    Returns:
        Harmonic and percussive magnitudes, both (batch, bins, frames); they sum to `magnitude`. No example depends on
        another.

    Raises:
        ValueError: fewer bins or frames than a median can reflect.
    """
    batch, bins, frames = magnitude.shape
    if min(bins, frames) <= WIDTH // 2:
        raise ValueError(f"{bins} bins and {frames} frames; a median over {WIDTH} needs more than {WIDTH // 2} of each")
    along_time = magnitude.permute(2, 0, 1).reshape(frames, batch * bins)
    along_frequency = magnitude.permute(1, 0, 2).reshape(bins, batch * frames)
    harmonic = sliding_median(along_time, WIDTH).view(frames, batch, bins).permute(1, 2, 0)
    percussive = sliding_median(along_frequency, WIDTH).view(bins, batch, frames).permute(1, 0, 2)
    # Both are divided by the larger before they are squared, so that no square vanishes.
    larger = torch.maximum(harmonic, percussive)
    silent = larger < torch.finfo(larger.dtype).tiny
    larger = larger.masked_fill(silent, 1.0)
    held, struck = (harmonic / larger).square(), (percussive / larger).square()
    share = (held / (held + struck)).masked_fill(silent, 0.5)
    return magnitude * share, magnitude * (1 - share)


def sliding_median(rows: Tensor, width: int) -> Tensor:
    """The median over `width` rows around each row; beyond the ends, rows are reflected with their edge.

    A median of 31 by sorting each window is what makes a separation slow. Here windows share their work. Those at rows
    2j and 2j + 1 have all elements but one each in common, and these are sorted in stretches of 2, 4, 8 and 16 that
    further windows share, merged by compare-and-swap: a minimum and a maximum of whole arrays. The last merge is never
    made, only its two middle elements. For 5 s of audio on one core that takes a tenth of the time.

    Args:
        rows: float, (rows, columns); more than `width` // 2 rows.
        width: odd.

    Returns:
        (rows, columns), exactly the medians.
    """
    reach = width // 2
    padded = torch.cat([rows[:reach].flip(0), rows, rows[-reach:].flip(0)])
    at_once = COLUMNS_AT_ONCE.get(rows.device.type, COLUMNS_ELSEWHERE)
    return torch.cat([_median(part.contiguous(), width) for part in torch.split(padded, at_once, dim=1)], dim=1)


def _median(rows: Tensor, width: int) -> Tensor:
    """(rows, columns) -> (rows - width + 1, columns): the median of each window."""
    count, pairs = len(rows) - width + 1, width // 2
    if len(rows) % 2:
        rows = torch.cat([rows, rows[-1:]])
    even, odd = rows[0::2].contiguous(), rows[1::2].contiguous()
    # Window 2j is even[j], then a core of `pairs` pairs (odd[j], even[j + 1]), ...; window 2j + 1 is the core, then
    # odd[j + pairs]. A further element moves the core's median to one of its two middle ones, or lies between them.
    core = [torch.minimum(odd[:-1], even[1:]), torch.maximum(odd[:-1], even[1:])]
    starts, half = len(even) - pairs, (pairs + 1) // 2
    first = [rank[:starts] for rank in _sorted_windows(core, half)]
    second = [rank[half : half + starts] for rank in _sorted_windows(core, pairs - half)] if pairs > half else []
    below, above = _smallest(first, second, pairs), _smallest(first, second, pairs + 1)
    ends = even[:starts], odd[pairs : pairs + starts]
    medians = [torch.maximum(below, torch.minimum(end, above)) for end in ends]
    return torch.stack(medians, dim=1).flatten(0, 1)[:count]


def _sorted_windows(ranks: list[Tensor], width: int) -> list[Tensor]:
    """Elements of every `width` neighbours by rank; `ranks` holds those of one, each (rows, columns)."""
    if width == 1:
        return ranks
    first = 1 << ((width - 1).bit_length() - 1)  # the power of two below
    low = _sorted_windows(ranks, first)
    high = low if width == 2 * first else _sorted_windows(ranks, width - first)
    count = len(ranks[0]) - width + 1
    return _merge([rank[:count] for rank in low], [rank[first : first + count] for rank in high])


def _smallest(low: list[Tensor], high: list[Tensor], k: int) -> Tensor:
    """The k-th smallest of two sorted lists: over all ways to take k from both, the least of the larger last ones."""
    least: Tensor | None = None
    for taken in range(max(0, k - len(high)), min(k, len(low)) + 1):
        if taken == 0:
            largest = high[k - 1]
        elif taken == k:
            largest = low[k - 1]
        else:
            largest = torch.maximum(low[taken - 1], high[k - taken - 1])
        least = largest if least is None else torch.minimum(least, largest)
    assert least is not None
    return least


def _merge(low: list[Tensor], high: list[Tensor]) -> list[Tensor]:
    """Batcher's odd-even merge of two sorted lists of any lengths (Knuth, volume 3, section 5.3.4)."""
    if not low or not high:
        return low or high
    if len(low) == len(high) == 1:
        return [torch.minimum(low[0], high[0]), torch.maximum(low[0], high[0])]
    evens, odds = _merge(low[0::2], high[0::2]), _merge(low[1::2], high[1::2])
    merged = [evens[0]]
    for odd, even in zip(odds, evens[1:], strict=False):
        merged += [torch.minimum(odd, even), torch.maximum(odd, even)]
    pairs = min(len(odds), len(evens) - 1)
    return merged + odds[pairs:] + evens[1 + pairs :]


def to_decibels(power: Tensor) -> Tensor:
    """Power, (batch, channels, bins, frames), in dB under each example's and channel's own maximum, from -80 to 0.

    Silence is 0 throughout: nothing lies under its maximum.
    """
    decibels = 10 * torch.log10(power.clamp_min(1e-10))
    return functional.relu(decibels - decibels.amax(dim=(2, 3), keepdim=True) + 80.0) - 80.0

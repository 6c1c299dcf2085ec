"""Time of an embedding, and of the plain path it replaced: `python -m benchmarks.encoder --threads 2`.

Plain: nnAudio's CQT and the layers one by one, the whole batch at once.
"""

import argparse

import torch
from torch import Tensor

from benchmarks.cqt import SETTINGS, interleaved_ms
from model import untrained_phalar
from model.cqt import plain_cqt, scale_decibels
from model.similarity import to_unit_norm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    phalar, plain_transform = untrained_phalar(0), plain_cqt(SETTINGS)
    generator = torch.Generator().manual_seed(0)
    print(f"{arguments.threads} threads, best of {arguments.repeats}, clips of 5 s, ms a clip")
    print("| batch | plain | embed | ratio | largest difference |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    with torch.inference_mode():
        for batch in (1, 8, 16):
            clips = 0.1 * torch.randn(batch, 80_000, generator=generator)

            def plain(clips: Tensor = clips) -> Tensor:
                cqt = scale_decibels(plain_transform(clips), phalar.config.dynamic_range_db)
                return to_unit_norm(phalar.head(phalar.pooling(phalar.backbone(cqt))))

            def embed(clips: Tensor = clips) -> Tensor:
                return phalar.embed(clips)

            old, new = interleaved_ms(plain, embed, repeats=arguments.repeats)
            difference = float((plain() - embed()).abs().max())
            print(f"| {batch} | {old / batch:.1f} | {new / batch:.1f} | {old / new:.1f} | {difference:.1e} |")


if __name__ == "__main__":
    main()

"""Does flat search over folded keys return what brute force over the complex score returns, on real windows?

    python -m benchmarks.exactness --stems DIR [--k 50] [--checkpoint FILE]

Every window of every stem is embedded, folded, put into a flat FAISS index, and used as a query in turn. For the same
embeddings the complex score of all against all is computed in double precision, and the two top-k lists are compared.
"""

import argparse
from pathlib import Path

import faiss
import numpy as np

from benchmarks.alignment import AUDIO
from indexer import HermitianFold
from model.audio import SAMPLE_RATE, cut_windows, is_silent, load_clip, window_starts
from model.checkpoints import load_phalar
from model.phalar import untrained_phalar

WINDOW, STRIDE = 5 * SAMPLE_RATE, 5 * SAMPLE_RATE // 2
TIE = 1e-5  # float32 keys: two windows whose exact scores are nearer than this may change places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stems", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--k", type=int, default=50)
    arguments = parser.parse_args()
    model = load_phalar(arguments.checkpoint) if arguments.checkpoint else untrained_phalar()
    embedded = []
    for path in sorted(path for path in arguments.stems.rglob("*") if path.suffix.lower() in AUDIO):
        waveform = load_clip(path).waveform
        windows = cut_windows(waveform, window_starts(len(waveform), WINDOW, STRIDE), WINDOW)
        audible = np.array([not is_silent(window) for window in windows])
        if audible.any():
            embedded.append(model.embed(windows[audible]).numpy())
    embedding = np.concatenate(embedded)
    fold = HermitianFold(model.hermitian)
    exact = (embedding.conj().astype(np.complex128) @ fold.hermitian @ embedding.T.astype(np.complex128)).real
    index = faiss.IndexFlatIP(fold.dim)
    index.add(fold.keys(embedding))
    scores, found = index.search(fold.queries(embedding), arguments.k)
    best = np.sort(exact, axis=1)[:, ::-1][:, : arguments.k]
    same = np.sort(found, axis=1) == np.sort(np.argsort(-exact, axis=1, kind="stable")[:, : arguments.k], axis=1)
    missed = np.take_along_axis(exact, found, axis=1) < best[:, -1:] - TIE
    print(f"windows {len(embedding)}, k {arguments.k}, largest |score| {np.abs(exact).max():.4f}")
    print(f"largest |flat score - complex score| {np.abs(scores - np.take_along_axis(exact, found, axis=1)).max():.2e}")
    print(f"queries whose top-k set is the same to the id: {same.all(axis=1).sum()} of {len(embedding)}")
    print(f"answers that score below the exact top-k by more than {TIE:g}: {missed.sum()} of {missed.size}")


if __name__ == "__main__":
    main()

"""How long grouping takes, and how much memory: made-up faces of persons with few and with thousands, and of strangers.

python -m benchmarks.clustering --faces 100000 --dim 128
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from deployments.models.cluster_scores import score
from serve_app.faces import FloatArray, l2_normalize
from serve_app.grouping.clustering import FacesToGroup, GroupingLimits, group_faces
from serve_app.grouping.neighbours import IntArray

LIMITS = GroupingLimits(0.46, 0.30)


def made_up(count: int, dim: int) -> tuple[FloatArray, IntArray, IntArray]:
    """Embeddings, persons and pictures. Three faces of five are of persons with 2 to 3,000 faces (Pareto), the others of
    strangers with one. Faces of one person have cosines of 0.4 to 0.8. A picture has two, never the same person's."""
    random = np.random.default_rng(0)
    sizes: list[int] = []
    while sum(sizes) < 0.6 * count:
        sizes.append(int(min(3000, 2 + 3 * random.pareto(1.0))))
    persons = np.concatenate((np.repeat(np.arange(len(sizes)), sizes), len(sizes) + np.arange(count)))[:count]
    centres = l2_normalize(random.normal(size=(int(persons.max()) + 1, dim)).astype(np.float32))
    likeness = random.uniform(0.4, 0.8, count).astype(np.float32)[:, None]
    noise = l2_normalize(random.normal(size=(count, dim)).astype(np.float32))
    embeddings = l2_normalize(np.sqrt(likeness) * centres[persons] + np.sqrt(1 - likeness) * noise)
    ordinal = np.arange(count) - np.searchsorted(persons, persons)
    shift = random.integers(0, count // 2, int(persons.max()) + 1)
    return embeddings, persons, (shift[persons] + ordinal) % (count // 2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--faces", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()
    embeddings, persons, pictures = made_up(options.faces, options.dim)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.monotonic(), time.process_time()
    nobody, none = np.full(options.faces, -1, dtype=np.int64), np.empty((0, 2), dtype=np.int64)
    longest, last = 0.0, wall

    def check() -> None:
        nonlocal longest, last
        now = time.monotonic()
        longest, last = max(longest, now - last), now

    grouping = group_faces(FacesToGroup(embeddings, pictures, nobody, 0, none, none), LIMITS, check)
    scores = score(grouping.groups.tolist(), persons.tolist())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{options.faces} faces, {options.dim}-D: {time.monotonic() - wall:.1f} s, {time.process_time() - cpu:.1f} s CPU,"
        f" {peak >> 10} MiB at most ({before >> 10} before), {longest:.1f} s between two looks whether to stop"
    )
    print(f"BCubed F1 {scores.bcubed.f1:.4f}, pairwise F1 {scores.pairwise.f1:.4f}, purity {scores.purity:.4f}")


if __name__ == "__main__":
    main()

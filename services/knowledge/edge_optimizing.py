"""Optimizes one shard: ``edge_optimizing.py <folder>``. A process of its own, as the engine holds the GIL all along.

A stand-alone script: it imports nothing of ours, so it starts in a moment. It is started by ``leashed.py`` and so dies
with its store, whatever it is at: a half-made copy is removed at the next start.
"""

import os
import sys

from qdrant_edge import EdgeShard


def main() -> None:
    """Builds the shard's indexes and removes its deleted points."""
    # Whoever is being answered goes first.
    os.nice(10)
    shard = EdgeShard.load(sys.argv[1])
    shard.optimize()
    shard.flush()
    shard.close()


if __name__ == "__main__":
    main()

"""Which waiting texts the model takes next: small batches of like length, the oldest always among them."""

from collections.abc import Sequence

CHARS_PER_TOKEN = 3
"""Fewer than most text has, so that a batch rarely holds more tokens than it was meant to."""
LOOK_AHEAD = 256
"""Waiting texts among which those of like length are sought; padding is waste."""


def take(lengths_chars: Sequence[int], *, window_tokens: int, batch_tokens: int) -> list[int]:
    """Chooses the next batch from texts that wait in order of arrival.

    The first text is always taken, then those nearest to it in length while the padded batch stays within
    `batch_tokens` (estimated). So no text waits for ever, and no batch takes long.

    Returns:
        Positions in `lengths_chars`; empty only when that is.
    """
    if not lengths_chars:
        return []
    sizes = [min(length // CHARS_PER_TOKEN, window_tokens) + 2 for length in lengths_chars[:LOOK_AHEAD]]
    batch = [0]
    widest = sizes[0]
    for position in sorted(range(1, len(sizes)), key=lambda i: abs(sizes[i] - sizes[0])):
        widest = max(widest, sizes[position])
        if widest * (len(batch) + 1) > batch_tokens:
            break
        batch.append(position)
    return batch

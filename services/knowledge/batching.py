"""Which waiting texts the model takes next: small batches of like length, the oldest always among them."""

from collections.abc import Sequence

TOKENS_WORTH_A_BATCH = 48
"""What starting a batch costs, in tokens computed (MiniLM-L6: 10 ms and 0.2 ms a token)."""
LOOK_AHEAD = 256
"""Waiting texts among which those of like length are sought; padding is waste."""


def take(tokens: Sequence[int], *, batch_tokens: int) -> list[int]:
    """Chooses the next batch from texts that wait in order of arrival, of so many `tokens` each.

    The first text is always taken, then those nearest to it in length while the padded batch stays within
    `batch_tokens` and padding costs less than a batch of its own. So no text waits for ever, and no batch takes long.

    Returns:
        Positions in `tokens`; empty only when that is.
    """
    if not tokens:
        return []
    sizes = tokens[:LOOK_AHEAD]
    batch = [0]
    widest = sizes[0]
    for position in sorted(range(1, len(sizes)), key=lambda i: abs(sizes[i] - sizes[0])):
        wider = max(widest, sizes[position])
        padded = wider * (len(batch) + 1)
        if padded > batch_tokens or padded - widest * len(batch) > sizes[position] + TOKENS_WORTH_A_BATCH:
            break
        widest = wider
        batch.append(position)
    return batch

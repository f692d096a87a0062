"""Where sums outlive their calls: in hours so old that those may be dropped, closed months, vanished months. Pure."""

from dataclasses import dataclass
from datetime import UTC, date, datetime


@dataclass(frozen=True)
class Months:
    """Where sums are not those of the calls that are left, and are right."""

    forgettable_before: datetime
    """No usage older than this is taken any more: an operator may have dropped it."""
    closed_through: date = date(1970, 1, 1)
    """The first day of the newest closed month."""
    vanished: frozenset[date] = frozenset()
    """Months that lost calls and that nobody has explained, by their first day."""
    explained: frozenset[date] = frozenset()

    def forgets(self, hour: int) -> bool:
        """Whether calls of `hour`, in seconds since 1970, may be gone for good without anything being wrong."""
        return hour < self.forgettable_before.timestamp() or month_of(hour) in self.explained

    def keeps(self, hour: int) -> bool:
        """Whether no sum of `hour` may become less: it was billed, or most of its month is gone."""
        month = month_of(hour)
        return month <= self.closed_through or month in self.vanished


def month_of(hour: int) -> date:
    """The first day of the UTC month of `hour`, in seconds since 1970."""
    return datetime.fromtimestamp(hour, UTC).date().replace(day=1)

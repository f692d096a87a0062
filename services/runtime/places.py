"""Places for calls in progress: so many in all, and so many of them for each tenant."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from services.contracts.failures import Exhausted
from services.contracts.tenants import TenantId

_RETRY_AFTER = timedelta(seconds=1)


class Places:
    """One tenant's calls, however long they go on, must not keep the others out."""

    def __init__(self, most: int, most_per_tenant: int, what: str) -> None:
        """`what` has places: calls or requests."""
        self._what = what
        self._most = most
        self._most_per_tenant = most_per_tenant
        self._taken: Counter[TenantId | None] = Counter()
        self._taken_in_all = 0

    @contextmanager
    def taken(self, tenant: TenantId | None) -> Iterator[None]:
        """A place for a call of `tenant`, None for the platform's own keys, while the context is open.

        Raises:
            Exhausted: there is none left, or none for this tenant.
        """
        if self._taken[tenant] >= self._most_per_tenant:
            whose = "your tenant" if tenant else "the platform's own keys"
            raise self._none_left(
                f"{whose} may have {self._most_per_tenant} {self._what} in progress: end one, or wait until one ends"
            )
        if self._taken_in_all >= self._most:
            raise self._none_left(f"the server has as many {self._what} in progress as it takes; try again in a moment")
        self._taken[tenant] += 1
        self._taken_in_all += 1
        try:
            yield
        finally:
            self._taken_in_all -= 1
            self._taken[tenant] -= 1
            if not self._taken[tenant]:
                del self._taken[tenant]

    def _none_left(self, message: str) -> Exhausted:
        return Exhausted(f"TOO_MANY_{self._what.upper()}", message, retry_after=_RETRY_AFTER)

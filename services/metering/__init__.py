"""Metering: usage in, costs out.

Hears  UsageSettled.
Tells  nothing.
Serves MeteringService and TenantService.
Owns   the ClickHouse database `headwater`, the tenants with their plans, and what budgets allow.

What a call cost arrives at least once and is stored as one row, whatever is killed and whenever: rows are idempotent,
sums are recomputed from them and never incremented.
"""

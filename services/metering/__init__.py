"""Metering: hears UsageSettled; tells nothing; serves MeteringService and TenantService; owns the ClickHouse database
`headwater` and the bucket of tenants.

What a call cost arrives at least once and is stored as one row, whatever is killed and whenever: rows are idempotent,
sums are recomputed from them and never incremented.
"""

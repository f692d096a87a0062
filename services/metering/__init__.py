"""Metering: usage in, costs out.

Hears  UsageSettled.
Tells  AlertRaised.
Serves MeteringService, PriceService, ReportService, TenantService and WebhookService.
Owns   the ClickHouse database `headwater`, tenants and plans, the price book, what budgets allow, and webhooks.

What a call cost arrives at least once and is stored as one row, whatever is killed and whenever: rows are idempotent,
sums are recomputed from them and never incremented.
"""

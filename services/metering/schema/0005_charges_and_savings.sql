ALTER TABLE headwater.usage_events
    ADD COLUMN IF NOT EXISTS charged_usd Decimal(38, 12) DEFAULT cost_usd COMMENT 'What the tenant is charged for the call in US dollars: its cost with the tenant''s mark-up' AFTER cost_usd,
    ADD COLUMN IF NOT EXISTS without_cache_usd Decimal(38, 12) DEFAULT cost_usd COMMENT 'What the call would have cost had the provider cached nothing' AFTER charged_usd,
    ADD COLUMN IF NOT EXISTS reference_model LowCardinality(String) COMMENT 'What would have answered without a cascade, as provider/model; empty if that is not known' AFTER without_cache_usd,
    ADD COLUMN IF NOT EXISTS reference_usd Nullable(Decimal(38, 12)) COMMENT 'What reference_model would have cost for the request, by estimate; NULL if that is not known' AFTER reference_model,
    ADD COLUMN IF NOT EXISTS batch Bool COMMENT 'The provider ran the call in a batch, at its discount' AFTER reference_usd,
    -- Rows arrive in the order of the stream, so few granules hold any range of it: the audit reads ranges.
    ADD INDEX IF NOT EXISTS by_js_seq js_seq TYPE minmax GRANULARITY 1;

ALTER TABLE headwater.usage_events MATERIALIZE INDEX by_js_seq;

ALTER TABLE headwater.cost_hourly
    ADD COLUMN IF NOT EXISTS charged_usd Decimal(38, 12) DEFAULT cost_usd COMMENT 'What the tenants are charged for the calls in US dollars' AFTER cost_usd;

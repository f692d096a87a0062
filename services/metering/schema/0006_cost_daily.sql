-- Sums by day, because analysts ask for days, weeks and months: 24 times fewer rows than cost_hourly when traffic is
-- steady. It has no TTL and needs none: a tenant's year is a few thousand rows. Truth and cost_hourly have none either:
-- what was charged is kept as long as the law of the operator's country says, and dropping it is the operator's act
-- (docs/operations.md). Nothing older than 400 days is ever told or summed up anew, so older months can be dropped.
CREATE TABLE IF NOT EXISTS headwater.cost_daily
(
    day Date COMMENT 'The UTC day in which the calls were made',
    tenant_id LowCardinality(String) COMMENT 'Whom to charge',
    service LowCardinality(String) COMMENT 'The service that made the calls: ingest, retrieval or inference',
    feature LowCardinality(String) COMMENT 'Feature of the product; empty if the caller named none',
    stage LowCardinality(String) COMMENT 'Stage of the cascade, or what the embedding was for',
    provider LowCardinality(String) COMMENT 'Who runs the model',
    model LowCardinality(String) COMMENT 'The model',
    estimated Bool COMMENT 'The costs are estimates',
    calls UInt64 COMMENT 'Model and embedding calls; 0 for a group whose calls were all corrected away',
    uncached_input_tokens UInt64 COMMENT 'Input tokens neither read from nor written to the provider''s cache',
    cache_read_tokens UInt64 COMMENT 'Input tokens read from the provider''s cache',
    cache_write_tokens UInt64 COMMENT 'Input tokens written to the provider''s cache',
    output_tokens UInt64 COMMENT 'Visible output tokens',
    reasoning_tokens UInt64 COMMENT 'Output tokens spent on reasoning that is not shown',
    cost_usd Decimal(38, 12) COMMENT 'What the calls cost in US dollars',
    charged_usd Decimal(38, 12) COMMENT 'What the tenants are charged for the calls in US dollars',
    version UInt64 COMMENT 'Of rows of the same group the one with the highest version counts'
)
-- Recomputed, never incremented: the newest sum of a group replaces the one before it.
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(day)
-- Day first: what is recomputed are the last days, so FINAL has nothing to put together for all others. Tenant first
-- took twice as long for all tenants' totals and for a week. Small granules let a tenant's rows be found in every day.
ORDER BY (day, tenant_id, service, feature, stage, provider, model, estimated)
SETTINGS non_replicated_deduplication_window = 0, index_granularity = 1024
COMMENT 'cost_hourly summed up by UTC day, seconds behind it. Read it with FINAL';

CREATE OR REPLACE VIEW headwater.tenant_cost_daily
(
    day Date COMMENT 'The UTC day',
    tenant_id LowCardinality(String) COMMENT 'Whom to charge',
    calls UInt64 COMMENT 'Model and embedding calls',
    input_tokens UInt64 COMMENT 'Input tokens of every class',
    output_tokens UInt64 COMMENT 'Output tokens of every class',
    cost_usd Decimal(38, 12) COMMENT 'What the calls cost in US dollars',
    charged_usd Decimal(38, 12) COMMENT 'What the tenant is charged for them in US dollars',
    estimated_cost_usd Decimal(38, 12) COMMENT 'How much of cost_usd is estimated'
)
AS SELECT
    rollup.day AS day,
    rollup.tenant_id AS tenant_id,
    sum(rollup.calls) AS calls,
    sum(rollup.uncached_input_tokens + rollup.cache_read_tokens + rollup.cache_write_tokens) AS input_tokens,
    sum(rollup.output_tokens + rollup.reasoning_tokens) AS output_tokens,
    sum(rollup.cost_usd) AS cost_usd,
    sum(rollup.charged_usd) AS charged_usd,
    sumIf(rollup.cost_usd, rollup.estimated) AS estimated_cost_usd
FROM headwater.cost_daily AS rollup FINAL
WHERE rollup.calls > 0
GROUP BY day, tenant_id
COMMENT 'What every tenant cost, by UTC day';

CREATE OR REPLACE VIEW headwater.feature_cost_daily
(
    day Date COMMENT 'The UTC day',
    tenant_id LowCardinality(String) COMMENT 'Whom to charge',
    feature LowCardinality(String) COMMENT 'Feature of the product; empty if the caller named none',
    calls UInt64 COMMENT 'Model and embedding calls',
    input_tokens UInt64 COMMENT 'Input tokens of every class',
    output_tokens UInt64 COMMENT 'Output tokens of every class',
    cost_usd Decimal(38, 12) COMMENT 'What the calls cost in US dollars',
    charged_usd Decimal(38, 12) COMMENT 'What the tenant is charged for them in US dollars',
    estimated_cost_usd Decimal(38, 12) COMMENT 'How much of cost_usd is estimated'
)
AS SELECT
    rollup.day AS day,
    rollup.tenant_id AS tenant_id,
    rollup.feature AS feature,
    sum(rollup.calls) AS calls,
    sum(rollup.uncached_input_tokens + rollup.cache_read_tokens + rollup.cache_write_tokens) AS input_tokens,
    sum(rollup.output_tokens + rollup.reasoning_tokens) AS output_tokens,
    sum(rollup.cost_usd) AS cost_usd,
    sum(rollup.charged_usd) AS charged_usd,
    sumIf(rollup.cost_usd, rollup.estimated) AS estimated_cost_usd
FROM headwater.cost_daily AS rollup FINAL
WHERE rollup.calls > 0
GROUP BY day, tenant_id, feature
COMMENT 'What every feature cost each tenant, by UTC day';

CREATE OR REPLACE VIEW headwater.model_cost_daily
(
    day Date COMMENT 'The UTC day',
    provider LowCardinality(String) COMMENT 'Who runs the model',
    model LowCardinality(String) COMMENT 'The model',
    calls UInt64 COMMENT 'Model and embedding calls',
    input_tokens UInt64 COMMENT 'Input tokens of every class',
    output_tokens UInt64 COMMENT 'Output tokens of every class',
    cost_usd Decimal(38, 12) COMMENT 'What the calls cost in US dollars',
    charged_usd Decimal(38, 12) COMMENT 'What the tenants are charged for them in US dollars',
    estimated_cost_usd Decimal(38, 12) COMMENT 'How much of cost_usd is estimated'
)
AS SELECT
    rollup.day AS day,
    rollup.provider AS provider,
    rollup.model AS model,
    sum(rollup.calls) AS calls,
    sum(rollup.uncached_input_tokens + rollup.cache_read_tokens + rollup.cache_write_tokens) AS input_tokens,
    sum(rollup.output_tokens + rollup.reasoning_tokens) AS output_tokens,
    sum(rollup.cost_usd) AS cost_usd,
    sum(rollup.charged_usd) AS charged_usd,
    sumIf(rollup.cost_usd, rollup.estimated) AS estimated_cost_usd
FROM headwater.cost_daily AS rollup FINAL
WHERE rollup.calls > 0
GROUP BY day, provider, model
COMMENT 'What every model cost, by UTC day';

CREATE VIEW IF NOT EXISTS headwater.tenant_cost_daily
(
    day Date COMMENT 'The UTC day',
    tenant_id LowCardinality(String) COMMENT 'Whom to charge',
    calls UInt64 COMMENT 'Model and embedding calls',
    input_tokens UInt64 COMMENT 'Input tokens of every class',
    output_tokens UInt64 COMMENT 'Output tokens of every class',
    cost_usd Decimal(38, 12) COMMENT 'What the calls cost in US dollars',
    estimated_cost_usd Decimal(38, 12) COMMENT 'How much of cost_usd is estimated'
)
AS SELECT
    toDate(rollup.hour, 'UTC') AS day,
    rollup.tenant_id AS tenant_id,
    sum(rollup.calls) AS calls,
    sum(rollup.uncached_input_tokens + rollup.cache_read_tokens + rollup.cache_write_tokens) AS input_tokens,
    sum(rollup.output_tokens + rollup.reasoning_tokens) AS output_tokens,
    sum(rollup.cost_usd) AS cost_usd,
    sumIf(rollup.cost_usd, rollup.estimated) AS estimated_cost_usd
FROM headwater.cost_hourly AS rollup FINAL
WHERE rollup.calls > 0
GROUP BY day, tenant_id
COMMENT 'What every tenant cost, by UTC day';

CREATE VIEW IF NOT EXISTS headwater.feature_cost_daily
(
    day Date COMMENT 'The UTC day',
    tenant_id LowCardinality(String) COMMENT 'Whom to charge',
    feature LowCardinality(String) COMMENT 'Feature of the product; empty if the caller named none',
    calls UInt64 COMMENT 'Model and embedding calls',
    input_tokens UInt64 COMMENT 'Input tokens of every class',
    output_tokens UInt64 COMMENT 'Output tokens of every class',
    cost_usd Decimal(38, 12) COMMENT 'What the calls cost in US dollars',
    estimated_cost_usd Decimal(38, 12) COMMENT 'How much of cost_usd is estimated'
)
AS SELECT
    toDate(rollup.hour, 'UTC') AS day,
    rollup.tenant_id AS tenant_id,
    rollup.feature AS feature,
    sum(rollup.calls) AS calls,
    sum(rollup.uncached_input_tokens + rollup.cache_read_tokens + rollup.cache_write_tokens) AS input_tokens,
    sum(rollup.output_tokens + rollup.reasoning_tokens) AS output_tokens,
    sum(rollup.cost_usd) AS cost_usd,
    sumIf(rollup.cost_usd, rollup.estimated) AS estimated_cost_usd
FROM headwater.cost_hourly AS rollup FINAL
WHERE rollup.calls > 0
GROUP BY day, tenant_id, feature
COMMENT 'What every feature cost each tenant, by UTC day';

CREATE VIEW IF NOT EXISTS headwater.model_cost_daily
(
    day Date COMMENT 'The UTC day',
    provider LowCardinality(String) COMMENT 'Who runs the model',
    model LowCardinality(String) COMMENT 'The model',
    calls UInt64 COMMENT 'Model and embedding calls',
    input_tokens UInt64 COMMENT 'Input tokens of every class',
    output_tokens UInt64 COMMENT 'Output tokens of every class',
    cost_usd Decimal(38, 12) COMMENT 'What the calls cost in US dollars',
    estimated_cost_usd Decimal(38, 12) COMMENT 'How much of cost_usd is estimated'
)
AS SELECT
    toDate(rollup.hour, 'UTC') AS day,
    rollup.provider AS provider,
    rollup.model AS model,
    sum(rollup.calls) AS calls,
    sum(rollup.uncached_input_tokens + rollup.cache_read_tokens + rollup.cache_write_tokens) AS input_tokens,
    sum(rollup.output_tokens + rollup.reasoning_tokens) AS output_tokens,
    sum(rollup.cost_usd) AS cost_usd,
    sumIf(rollup.cost_usd, rollup.estimated) AS estimated_cost_usd
FROM headwater.cost_hourly AS rollup FINAL
WHERE rollup.calls > 0
GROUP BY day, provider, model
COMMENT 'What every model cost, by UTC day';

CREATE TABLE IF NOT EXISTS headwater.cost_hourly
(
    hour DateTime('UTC') COMMENT 'Start of the hour in which the calls were made',
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
    version UInt64 COMMENT 'Of rows of the same group the one with the highest version counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(hour)
ORDER BY (hour, tenant_id, service, feature, stage, provider, model, estimated)
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'usage_events summed up by hour, seconds behind it. Read it with FINAL';

CREATE TABLE IF NOT EXISTS headwater.rollup_progress
(
    rollup LowCardinality(String) COMMENT 'The table that is rolled up into',
    watermark DateTime64(3, 'UTC') COMMENT 'Rows stored up to here are summed up',
    version UInt64 COMMENT 'Of rows of the same rollup the one with the highest version counts'
)
ENGINE = ReplacingMergeTree(version)
ORDER BY rollup
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'How far the rollups are';

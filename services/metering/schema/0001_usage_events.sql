CREATE TABLE IF NOT EXISTS headwater.usage_events
(
    event_id UUID COMMENT 'Identifies the call; the same for every delivery of its event',
    event_time DateTime64(3, 'UTC') COMMENT 'When the call was made',
    tenant_id LowCardinality(String) COMMENT 'Whom to charge',
    request_id UUID COMMENT 'The request, or the indexing of one document version, that the call was made for',
    service LowCardinality(String) COMMENT 'The service that made the call: ingest, retrieval or inference',
    operation LowCardinality(String) COMMENT 'chat or embeddings',
    stage LowCardinality(String) COMMENT 'Stage of the cascade, or what the embedding was for',
    provider LowCardinality(String) COMMENT 'Who runs the model',
    model LowCardinality(String) COMMENT 'The model',
    feature LowCardinality(String) COMMENT 'Feature of the product; empty if the caller named none',
    uncached_input_tokens UInt64 COMMENT 'Input tokens neither read from nor written to the provider''s cache',
    cache_read_tokens UInt64 COMMENT 'Input tokens read from the provider''s cache',
    cache_write_tokens UInt64 COMMENT 'Input tokens written to the provider''s cache',
    output_tokens UInt64 COMMENT 'Visible output tokens',
    reasoning_tokens UInt64 COMMENT 'Output tokens spent on reasoning that is not shown',
    cost_usd Decimal(38, 12) COMMENT 'What the call cost in US dollars',
    price_source LowCardinality(String) COMMENT 'Entry of the price book it was priced by',
    estimated Bool COMMENT 'The provider did not tell the usage, or the price is a fallback',
    succeeded Bool COMMENT 'The call gave a result; a failed call may cost all the same',
    latency_ms UInt64 COMMENT 'How long the call took, in milliseconds',
    schema_version UInt16 COMMENT 'Version of the event',
    js_seq UInt64 COMMENT 'Sequence of the event in stream USAGE',
    ingested_at DateTime64(3, 'UTC') COMMENT 'When the row was stored; never goes back, rollups find new rows by it',
    version UInt64 COMMENT 'Of rows with the same event_id the one with the highest version counts',
    -- Rows lie by hour of the call and mostly arrive in that order, so few granules hold recently stored ones.
    INDEX by_ingested_at ingested_at TYPE minmax GRANULARITY 1
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(event_time)
ORDER BY (toStartOfHour(event_time), tenant_id, event_id)
-- A window would drop the new rows of a redelivered batch that grew.
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'The truth: one row a model or embedding call. Read it with FINAL';

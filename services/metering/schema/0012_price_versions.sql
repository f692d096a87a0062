-- A call's row must lead to what priced it: every amount on it names its entry of the price book. What the last stage would
-- have cost can be priced anew only if its tokens are kept; 0 beside 0 is no estimate, as whoever answers reads something.
ALTER TABLE headwater.usage_events
    ADD COLUMN IF NOT EXISTS charge_source LowCardinality(String) COMMENT 'Mark-up that makes charged_usd of cost_usd, as book:<version>:<tenant>, tenant * being everyone''s; empty if none does, or none was noted' AFTER charged_usd,
    ADD COLUMN IF NOT EXISTS reference_price_source LowCardinality(String) COMMENT 'Entry of the price book that makes reference_usd; empty if that is not known' AFTER reference_usd,
    ADD COLUMN IF NOT EXISTS reference_input_tokens UInt64 COMMENT 'Input tokens that reference_usd is the price of; with no output tokens either, reference_usd is the call''s own cost or its tokens are not known' AFTER reference_price_source,
    ADD COLUMN IF NOT EXISTS reference_output_tokens UInt64 COMMENT 'Output tokens that reference_usd is the price of, by estimate' AFTER reference_input_tokens;

-- A row a version, also of one that changed no price. Written after the version's other rows: what is here is there whole.
CREATE TABLE IF NOT EXISTS headwater.price_versions
(
    book_version UInt32 COMMENT 'Version of the price book; the highest is current, 0 is before there was one',
    prices UInt32 COMMENT 'How many entries of prices it has; a tier is a row more',
    markups UInt32 COMMENT 'How many rows of price_markups it has',
    own_fallback Bool COMMENT 'The version says its fallback itself; else it is the platform''s own',
    fallback_input_per_million_usd Decimal(38, 12) COMMENT 'What price_source fallback:<book_version> means: US dollars for a million uncached input tokens',
    fallback_cache_read_per_million_usd Decimal(38, 12) COMMENT 'The same: for a million input tokens read from the provider''s cache',
    fallback_cache_write_per_million_usd Decimal(38, 12) COMMENT 'The same: for a million input tokens written to the provider''s cache',
    fallback_output_per_million_usd Decimal(38, 12) COMMENT 'The same: for a million visible output tokens',
    fallback_reasoning_per_million_usd Decimal(38, 12) COMMENT 'The same: for a million output tokens of hidden reasoning',
    put_at DateTime64(3, 'UTC') COMMENT 'When the version was put; 1970 for version 0',
    put_by String COMMENT 'The id of the key it was put with; empty for version 0'
)
ENGINE = ReplacingMergeTree
ORDER BY book_version
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'Every version of the price book, with its fallback. Read it with FINAL';

-- In the order in which a charge is explained: whose, by which version, at which time.
CREATE TABLE IF NOT EXISTS headwater.price_markups
(
    book_version UInt32 COMMENT 'Version of the price book; the highest is current',
    tenant_id LowCardinality(String) COMMENT 'Whose calls; * for those of every tenant at times for which it has no mark-up of its own',
    charged_from DateTime64(3, 'UTC') COMMENT 'First moment of calls it counts for; 1970 for always',
    charged_until DateTime64(3, 'UTC') COMMENT 'The moment from which on it does not; 2200 for never',
    percent Decimal(38, 12) COMMENT 'How much more than its cost a call is charged; below zero for less'
)
ENGINE = ReplacingMergeTree
ORDER BY (tenant_id, book_version, charged_from)
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'The mark-ups of every version of the price book. Read it with FINAL';

-- Re-rating must not lose that a provider told no usage when a fallback prices a call in between.
ALTER TABLE headwater.usage_events
    ADD COLUMN IF NOT EXISTS tokens_estimated Bool DEFAULT provisional OR (estimated AND price_source != 'fallback') COMMENT 'The tokens are an estimate, whatever priced them' AFTER estimated;

-- Small, and joined by model: in its order a model's prices lie together. Nothing expires: old versions explain old bills.
CREATE TABLE IF NOT EXISTS headwater.prices
(
    book_version UInt32 COMMENT 'Version of the price book; the highest is current',
    provider LowCardinality(String) COMMENT 'Who runs the model',
    model LowCardinality(String) COMMENT 'The model',
    priced_from DateTime64(3, 'UTC') COMMENT 'First moment of calls it prices; 1970 for always',
    priced_until DateTime64(3, 'UTC') COMMENT 'The moment from which on it does not; 2200 for never',
    above_input_tokens UInt64 COMMENT 'It prices calls with more input tokens than this, up to the next such row; 0 in the first',
    input_per_million_usd Decimal(38, 12) COMMENT 'US dollars for a million uncached input tokens',
    cache_read_per_million_usd Decimal(38, 12) COMMENT 'US dollars for a million input tokens read from the provider''s cache',
    cache_write_per_million_usd Decimal(38, 12) COMMENT 'US dollars for a million input tokens written to the provider''s cache',
    output_per_million_usd Decimal(38, 12) COMMENT 'US dollars for a million visible output tokens',
    reasoning_per_million_usd Decimal(38, 12) COMMENT 'US dollars for a million output tokens of hidden reasoning',
    batch_discount_percent Decimal(38, 12) COMMENT 'How much less a call in a batch costs',
    put_at DateTime64(3, 'UTC') COMMENT 'When the version was put',
    put_by String COMMENT 'The id of the key it was put with'
)
ENGINE = ReplacingMergeTree
ORDER BY (provider, model, book_version, priced_from, above_input_tokens)
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'Our own prices: every entry of every version of the price book. Read it with FINAL';

-- In the order of usage_events, beside which it is read hour by hour. Partitioned by the month corrected, not by when: a
-- row told twice must meet its first telling. Nothing expires: these are bookings.
CREATE TABLE IF NOT EXISTS headwater.cost_adjustments
(
    adjustment_id UUID COMMENT 'Derives from the call, the version of the price book and how often the call was adjusted before',
    event_id UUID COMMENT 'The call',
    event_time DateTime64(3, 'UTC') COMMENT 'When the call was made',
    month Date COMMENT 'The closed month that is corrected, by its first day',
    tenant_id LowCardinality(String) COMMENT 'Whom to charge',
    service LowCardinality(String) COMMENT 'The service that made the call: ingest, retrieval or inference',
    feature LowCardinality(String) COMMENT 'Feature of the product; empty if the caller named none',
    stage LowCardinality(String) COMMENT 'Stage of the cascade, or what the embedding was for',
    provider LowCardinality(String) COMMENT 'Who runs the model',
    model LowCardinality(String) COMMENT 'The model',
    booked_at DateTime64(3, 'UTC') COMMENT 'When it was booked',
    ordinal UInt32 COMMENT 'How many adjustments of the call went before',
    cost_usd Decimal(38, 12) COMMENT 'By how many US dollars the call costs more; below zero if it costs less',
    charged_usd Decimal(38, 12) COMMENT 'By how many US dollars the tenant is charged more; below zero if less',
    price_source LowCardinality(String) COMMENT 'Entry of the price book that prices the call now',
    reason LowCardinality(String) COMMENT 'Why: rerated',
    book_version UInt32 COMMENT 'Version of the price book it was re-rated by; 0 if there was none',
    version UInt64 COMMENT 'Of rows with the same adjustment_id the one with the highest version counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(month)
ORDER BY (toStartOfHour(event_time), tenant_id, event_id, adjustment_id)
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'Corrections of calls in closed months: their rows in usage_events stay as they were billed. Read it with FINAL';

-- A row a tenant and month; a few thousand a year, kept for good.
CREATE TABLE IF NOT EXISTS headwater.closed_months
(
    month Date COMMENT 'The month, by its first day',
    tenant_id LowCardinality(String) COMMENT 'Whom to charge',
    calls Int64 COMMENT 'Calls of the month when it was closed',
    cost_usd Decimal(38, 12) COMMENT 'What they cost in US dollars',
    charged_usd Decimal(38, 12) COMMENT 'What the tenant was charged for them in US dollars',
    corrected_calls Int64 COMMENT 'Calls of months closed before that came to light since',
    corrected_cost_usd Decimal(38, 12) COMMENT 'Late usage and adjustments of months closed before that no earlier statement carried: their cost',
    corrected_charged_usd Decimal(38, 12) COMMENT 'The same: what the tenant was charged for them',
    version UInt64 COMMENT 'Of rows of the same month and tenant the one with the highest version counts'
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (month, tenant_id)
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'What was billed for every closed month; counts only for months in month_closings. Read it with FINAL';

-- Written after closed_months: a month is closed when its row is here, whole, or not at all.
CREATE TABLE IF NOT EXISTS headwater.month_closings
(
    month Date COMMENT 'The month, by its first day; it and all before it are closed',
    tenants UInt32 COMMENT 'Tenants with a statement of the month',
    calls Int64 COMMENT 'Calls on the statements, corrections included',
    cost_usd Decimal(38, 12) COMMENT 'What they cost in US dollars',
    charged_usd Decimal(38, 12) COMMENT 'What the tenants were charged in US dollars',
    closed_at DateTime64(3, 'UTC') COMMENT 'When it was closed',
    closed_by String COMMENT 'The id of the key it was closed with',
    version UInt64 COMMENT 'Of rows of the same month the one with the highest version counts'
)
ENGINE = ReplacingMergeTree(version)
ORDER BY month
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'Months that were closed. Read it with FINAL';

-- Statements telescope: whatever is known of closed months (usage and adjustments) and stands on no statement yet stands
-- on that of the oldest open month. So all statements together are always all usage and all adjustments, to the last
-- decimal, whatever came when and whatever clocks said.
CREATE VIEW IF NOT EXISTS headwater.tenant_statement_monthly
(
    month Date COMMENT 'The month, by its first day',
    tenant_id LowCardinality(String) COMMENT 'Whom to charge',
    closed Bool COMMENT 'The amounts are final',
    calls Int64 COMMENT 'Calls of the month',
    cost_usd Decimal(38, 12) COMMENT 'What they cost in US dollars',
    charged_usd Decimal(38, 12) COMMENT 'What the tenant is charged for them in US dollars',
    corrected_calls Int64 COMMENT 'Calls of months closed before that came to light since',
    corrected_cost_usd Decimal(38, 12) COMMENT 'Late usage and adjustments of months closed before that no earlier statement carried: their cost',
    corrected_charged_usd Decimal(38, 12) COMMENT 'The same: what the tenant is charged for them',
    total_cost_usd Decimal(38, 12) COMMENT 'cost_usd and corrected_cost_usd',
    total_charged_usd Decimal(38, 12) COMMENT 'charged_usd and corrected_charged_usd: what the statement asks for'
)
AS WITH (SELECT max(closing.month) FROM headwater.month_closings AS closing FINAL) AS closed_through
SELECT
    part.month AS month,
    part.tenant_id AS tenant_id,
    part.month <= closed_through AS closed,
    sum(part.own_calls) AS calls,
    sum(part.own_cost) AS cost_usd,
    sum(part.own_charged) AS charged_usd,
    sum(part.other_calls) AS corrected_calls,
    sum(part.other_cost) AS corrected_cost_usd,
    sum(part.other_charged) AS corrected_charged_usd,
    cost_usd + corrected_cost_usd AS total_cost_usd,
    charged_usd + corrected_charged_usd AS total_charged_usd
FROM
(
    -- The statements of closed months as they went out.
    SELECT month, tenant_id, calls AS own_calls, cost_usd AS own_cost, charged_usd AS own_charged,
        corrected_calls AS other_calls, corrected_cost_usd AS other_cost, corrected_charged_usd AS other_charged
    FROM headwater.closed_months AS frozen FINAL
    WHERE month <= closed_through
        AND month IN (SELECT closing.month FROM headwater.month_closings AS closing FINAL)
    UNION ALL
    -- What was used in open months.
    SELECT toStartOfMonth(hour), tenant_id, toInt64(calls), cost_usd, charged_usd,
        toInt64(0), toDecimal128(0, 12), toDecimal128(0, 12)
    FROM headwater.cost_hourly AS rollup FINAL
    WHERE toStartOfMonth(hour) > closed_through
    UNION ALL
    -- On the statement of the oldest open month: all usage of closed months as it is known now,
    SELECT addMonths(closed_through, 1), tenant_id, toInt64(0), toDecimal128(0, 12), toDecimal128(0, 12),
        toInt64(calls), cost_usd, charged_usd
    FROM headwater.cost_hourly AS rollup FINAL
    WHERE toStartOfMonth(hour) <= closed_through
    UNION ALL
    -- and all adjustments,
    SELECT addMonths(closed_through, 1), tenant_id, toInt64(0), toDecimal128(0, 12), toDecimal128(0, 12),
        toInt64(0), cost_usd, charged_usd
    FROM headwater.cost_adjustments AS adjustment FINAL
    UNION ALL
    -- less what statements carried.
    SELECT addMonths(closed_through, 1), tenant_id, toInt64(0), toDecimal128(0, 12), toDecimal128(0, 12),
        -calls - corrected_calls, -cost_usd - corrected_cost_usd, -charged_usd - corrected_charged_usd
    FROM headwater.closed_months AS frozen FINAL
    WHERE month <= closed_through
        AND month IN (SELECT closing.month FROM headwater.month_closings AS closing FINAL)
) AS part
GROUP BY month, tenant_id
HAVING closed OR calls != 0 OR corrected_calls != 0 OR corrected_cost_usd != 0 OR corrected_charged_usd != 0
COMMENT 'What every tenant is billed a month: its usage, and corrections of earlier months. Closed months never change';

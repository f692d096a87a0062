-- An export, like a statement, must never change once its month is closed. What a month looked like when it was closed
-- cannot be read from usage_events: the truth replaces what stood in for it, and merges forget that. So a closing keeps it.
-- Read month by month. Nothing expires: these are bookings.
CREATE TABLE IF NOT EXISTS headwater.closed_charges
(
    month Date COMMENT 'The closed month whose statement carries the charge, by its first day',
    booked_on Date COMMENT 'The day of the calls; of late usage the first day of month; of an adjustment the day it was booked, which may be after month',
    day Date COMMENT 'The UTC day of the calls; in an earlier month if that was closed before',
    adjustment Bool COMMENT 'Calls that were billed already got another price',
    tenant_id LowCardinality(String) COMMENT 'Whom to charge',
    service LowCardinality(String) COMMENT 'The service that made the calls: ingest, retrieval or inference',
    feature LowCardinality(String) COMMENT 'Feature of the product; empty if the caller named none',
    stage LowCardinality(String) COMMENT 'Stage of the cascade, or what the embedding was for',
    provider LowCardinality(String) COMMENT 'Who runs the model',
    model LowCardinality(String) COMMENT 'The model',
    estimated Bool COMMENT 'The costs are estimates',
    calls Int64 COMMENT 'Model and embedding calls; below zero for those that others replaced, 0 for an adjustment',
    uncached_input_tokens Int64 COMMENT 'Input tokens neither read from nor written to the provider''s cache',
    cache_read_tokens Int64 COMMENT 'Input tokens read from the provider''s cache',
    cache_write_tokens Int64 COMMENT 'Input tokens written to the provider''s cache',
    output_tokens Int64 COMMENT 'Visible output tokens',
    reasoning_tokens Int64 COMMENT 'Output tokens spent on reasoning that is not shown',
    cost_usd Decimal(38, 12) COMMENT 'What the calls cost in US dollars; of a correction, how much more',
    charged_usd Decimal(38, 12) COMMENT 'What the tenant is charged for them in US dollars; of a correction, how much more',
    version UInt64 COMMENT 'Of rows of the same group the one with the highest version counts'
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(month)
ORDER BY (month, booked_on, day, adjustment, tenant_id, service, feature, stage, provider, model, estimated)
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'What statements of closed months carry, by day; counts only for months in month_closings. Read it with FINAL. Partitioned by month of the statement, which is written and exported as a whole. Ordered by the days that an export names, then by the group that a row sums up';

-- Months closed before there was this table: as their sums are, which outlive calls that were dropped, but for what was stored
-- later. That stands on the statement that was made up next. A row that replaced another after its month was closed moves
-- whole, as nothing tells any more what the other was: only there does an old month differ from its statement.
INSERT INTO headwater.closed_charges
WITH
    (SELECT max(month) FROM headwater.month_closings FINAL) AS closed_through,
    (SELECT max(watermark) FROM headwater.rollup_progress FINAL WHERE rollup = 'cost_daily') AS summed_up_to,
    late AS
    (
        SELECT closing.month AS billed, toDate(call.event_time, 'UTC') AS day, call.*
        FROM
        (
            SELECT toUInt8(1) AS one, stored.*
            FROM headwater.usage_events AS stored FINAL
            -- Months before the first that was closed have no closing of their own: what was used in them is all late.
            LEFT JOIN (SELECT month, closed_at FROM headwater.month_closings FINAL) AS own
                ON own.month = toStartOfMonth(stored.event_time)
            WHERE toStartOfMonth(stored.event_time) <= closed_through
                AND stored.ingested_at > own.closed_at AND stored.ingested_at <= summed_up_to
        ) AS call
        ASOF LEFT JOIN (SELECT toUInt8(1) AS one, month, closed_at FROM headwater.month_closings FINAL) AS closing
            ON closing.one = call.one AND call.ingested_at <= closing.closed_at
    )
SELECT
    part.billed, part.booked, part.of_day, false,
    part.tenant_id, part.service, part.feature, part.stage, part.provider, part.model, part.estimated,
    sum(part.n), sum(part.uncached), sum(part.cache_read), sum(part.cache_write), sum(part.output), sum(part.reasoning),
    sum(part.cost), sum(part.charged), toUInt64(1)
FROM
(
    SELECT toStartOfMonth(rollup.day) AS billed, rollup.day AS booked, rollup.day AS of_day,
        rollup.tenant_id, rollup.service, rollup.feature, rollup.stage, rollup.provider, rollup.model, rollup.estimated,
        toInt64(rollup.calls) AS n, toInt64(rollup.uncached_input_tokens) AS uncached,
        toInt64(rollup.cache_read_tokens) AS cache_read, toInt64(rollup.cache_write_tokens) AS cache_write,
        toInt64(rollup.output_tokens) AS output, toInt64(rollup.reasoning_tokens) AS reasoning,
        rollup.cost_usd AS cost, rollup.charged_usd AS charged
    FROM headwater.cost_daily AS rollup FINAL
    WHERE toStartOfMonth(rollup.day) <= closed_through
    UNION ALL
    SELECT toStartOfMonth(late.day), late.day, late.day,
        late.tenant_id, late.service, late.feature, late.stage, late.provider, late.model, late.estimated,
        toInt64(-1), -toInt64(late.uncached_input_tokens), -toInt64(late.cache_read_tokens),
        -toInt64(late.cache_write_tokens), -toInt64(late.output_tokens), -toInt64(late.reasoning_tokens),
        -late.cost_usd, -late.charged_usd
    FROM late
    UNION ALL
    SELECT late.billed, late.billed, late.day,
        late.tenant_id, late.service, late.feature, late.stage, late.provider, late.model, late.estimated,
        toInt64(1), toInt64(late.uncached_input_tokens), toInt64(late.cache_read_tokens),
        toInt64(late.cache_write_tokens), toInt64(late.output_tokens), toInt64(late.reasoning_tokens),
        late.cost_usd, late.charged_usd
    FROM late
    WHERE late.billed > toDate(0)
) AS part
GROUP BY part.billed, part.booked, part.of_day,
    part.tenant_id, part.service, part.feature, part.stage, part.provider, part.model, part.estimated;

INSERT INTO headwater.closed_charges
SELECT
    closing.month AS billed,
    toDate(booking.booked_at, 'UTC') AS booked_on,
    toDate(booking.event_time, 'UTC') AS day,
    true AS adjustment,
    booking.tenant_id, booking.service, booking.feature, booking.stage, booking.provider, booking.model,
    false,
    0, 0, 0, 0, 0, 0,
    sum(booking.cost_usd),
    sum(booking.charged_usd),
    toUInt64(1)
FROM (SELECT toUInt8(1) AS one, stored.* FROM headwater.cost_adjustments AS stored FINAL) AS booking
ASOF INNER JOIN (SELECT toUInt8(1) AS one, month, closed_at FROM headwater.month_closings FINAL) AS closing
    ON closing.one = booking.one AND booking.booked_at <= closing.closed_at
GROUP BY billed, booked_on, day,
    booking.tenant_id, booking.service, booking.feature, booking.stage, booking.provider, booking.model;

-- The rule is that of tenant_statement_monthly: whatever is known of closed months and stands on no statement yet stands on
-- that of the oldest open month. Here by day and group, so that the export says what each amount is for.
CREATE VIEW IF NOT EXISTS headwater.billed_charges
(
    month Date COMMENT 'The month whose statement carries the charge, by its first day',
    booked_on Date COMMENT 'The day of the calls; of late usage the first day of month; of an adjustment the day it was booked, which may be after month',
    day Date COMMENT 'The UTC day of the calls; in an earlier month if that was closed before',
    adjustment Bool COMMENT 'Calls that were billed already got another price',
    tenant_id LowCardinality(String) COMMENT 'Whom to charge',
    service LowCardinality(String) COMMENT 'The service that made the calls: ingest, retrieval or inference',
    feature LowCardinality(String) COMMENT 'Feature of the product; empty if the caller named none',
    stage LowCardinality(String) COMMENT 'Stage of the cascade, or what the embedding was for',
    provider LowCardinality(String) COMMENT 'Who runs the model',
    model LowCardinality(String) COMMENT 'The model',
    estimated Bool COMMENT 'The costs are estimates',
    calls Int64 COMMENT 'Model and embedding calls; below zero for those that others replaced, 0 for an adjustment',
    uncached_input_tokens Int64 COMMENT 'Input tokens neither read from nor written to the provider''s cache',
    cache_read_tokens Int64 COMMENT 'Input tokens read from the provider''s cache',
    cache_write_tokens Int64 COMMENT 'Input tokens written to the provider''s cache',
    output_tokens Int64 COMMENT 'Visible output tokens',
    reasoning_tokens Int64 COMMENT 'Output tokens spent on reasoning that is not shown',
    cost_usd Decimal(38, 12) COMMENT 'What the calls cost in US dollars; of a correction, how much more',
    charged_usd Decimal(38, 12) COMMENT 'What the tenant is charged for them in US dollars; of a correction, how much more'
)
AS WITH
    (SELECT max(closing.month) FROM headwater.month_closings AS closing FINAL) AS closed_through,
    addMonths(closed_through, 1) AS open_month,
    -- Days of closed months that are not as they were kept: few, and only they are compared group by group.
    changed AS
    (
        SELECT both.day AS day
        FROM
        (
            SELECT rollup.day AS day, toInt64(cityHash64(
                rollup.tenant_id, rollup.service, rollup.feature, rollup.stage, rollup.provider, rollup.model, rollup.estimated,
                toInt64(rollup.calls), toInt64(rollup.uncached_input_tokens), toInt64(rollup.cache_read_tokens),
                toInt64(rollup.cache_write_tokens), toInt64(rollup.output_tokens), toInt64(rollup.reasoning_tokens),
                rollup.cost_usd, rollup.charged_usd)) AS hash
            FROM headwater.cost_daily AS rollup FINAL
            WHERE toStartOfMonth(rollup.day) <= closed_through AND rollup.calls > 0
            UNION ALL
            SELECT frozen.day, -toInt64(cityHash64(
                frozen.tenant_id, frozen.service, frozen.feature, frozen.stage, frozen.provider, frozen.model, frozen.estimated,
                frozen.calls, frozen.uncached_input_tokens, frozen.cache_read_tokens, frozen.cache_write_tokens,
                frozen.output_tokens, frozen.reasoning_tokens, frozen.cost_usd, frozen.charged_usd))
            FROM headwater.closed_charges AS frozen FINAL
            WHERE frozen.month <= closed_through AND NOT frozen.adjustment
        ) AS both
        GROUP BY day
        HAVING sum(both.hash) != 0
    )
SELECT
    part.billed AS month,
    part.booked AS booked_on,
    part.of_day AS day,
    part.adjusted AS adjustment,
    part.tenant_id AS tenant_id,
    part.service AS service,
    part.feature AS feature,
    part.stage AS stage,
    part.provider AS provider,
    part.model AS model,
    part.estimated AS estimated,
    sum(part.n) AS calls,
    sum(part.uncached) AS uncached_input_tokens,
    sum(part.cache_read) AS cache_read_tokens,
    sum(part.cache_write) AS cache_write_tokens,
    sum(part.output) AS output_tokens,
    sum(part.reasoning) AS reasoning_tokens,
    sum(part.cost) AS cost_usd,
    sum(part.charged) AS charged_usd
FROM
(
    -- Closed months as they were billed.
    SELECT frozen.month AS billed, frozen.booked_on AS booked, frozen.day AS of_day, frozen.adjustment AS adjusted,
        frozen.tenant_id, frozen.service, frozen.feature, frozen.stage, frozen.provider, frozen.model, frozen.estimated,
        frozen.calls AS n, frozen.uncached_input_tokens AS uncached, frozen.cache_read_tokens AS cache_read,
        frozen.cache_write_tokens AS cache_write, frozen.output_tokens AS output, frozen.reasoning_tokens AS reasoning,
        frozen.cost_usd AS cost, frozen.charged_usd AS charged
    FROM headwater.closed_charges AS frozen FINAL
    WHERE frozen.month <= closed_through
    UNION ALL
    -- All usage as it is known now: in its month if that is open, else in the oldest that is,
    SELECT greatest(toStartOfMonth(rollup.day), open_month), greatest(rollup.day, open_month), rollup.day, false,
        rollup.tenant_id, rollup.service, rollup.feature, rollup.stage, rollup.provider, rollup.model, rollup.estimated,
        toInt64(rollup.calls), toInt64(rollup.uncached_input_tokens), toInt64(rollup.cache_read_tokens),
        toInt64(rollup.cache_write_tokens), toInt64(rollup.output_tokens), toInt64(rollup.reasoning_tokens),
        rollup.cost_usd, rollup.charged_usd
    FROM headwater.cost_daily AS rollup FINAL
    WHERE toStartOfMonth(rollup.day) > closed_through OR rollup.day IN (SELECT changed.day FROM changed)
    UNION ALL
    -- all adjustments, of which there are none before a month is closed,
    SELECT if(closed_through = toDate(0), toStartOfMonth(booking.booked_at), open_month),
        toDate(booking.booked_at, 'UTC'), toDate(booking.event_time, 'UTC'), true,
        booking.tenant_id, booking.service, booking.feature, booking.stage, booking.provider, booking.model, false,
        toInt64(0), toInt64(0), toInt64(0), toInt64(0), toInt64(0), toInt64(0), booking.cost_usd, booking.charged_usd
    FROM headwater.cost_adjustments AS booking FINAL
    UNION ALL
    -- less what statements carried of both.
    SELECT open_month, if(frozen.adjustment, frozen.booked_on, open_month), frozen.day, frozen.adjustment,
        frozen.tenant_id, frozen.service, frozen.feature, frozen.stage, frozen.provider, frozen.model, frozen.estimated,
        -frozen.calls, -frozen.uncached_input_tokens, -frozen.cache_read_tokens, -frozen.cache_write_tokens,
        -frozen.output_tokens, -frozen.reasoning_tokens, -frozen.cost_usd, -frozen.charged_usd
    FROM headwater.closed_charges AS frozen FINAL
    WHERE frozen.month <= closed_through AND (frozen.adjustment OR frozen.day IN (SELECT changed.day FROM changed))
) AS part
GROUP BY month, booked_on, day, adjustment, tenant_id, service, feature, stage, provider, model, estimated
HAVING calls != 0 OR cost_usd != 0 OR charged_usd != 0 OR uncached_input_tokens != 0 OR cache_read_tokens != 0
    OR cache_write_tokens != 0 OR output_tokens != 0 OR reasoning_tokens != 0
COMMENT 'Every charge by day, in the month whose statement carries it: those of a month are its statements. Those of closed months never change';

-- As in step 10, but of the charges above: late usage of a closed month is a correction too, and names its tokens.
CREATE OR REPLACE VIEW headwater.focus_costs
(
    BilledCost Decimal(38, 12) COMMENT 'What the model''s provider bills for the calls',
    BillingAccountId String COMMENT 'The account that is billed: this platform',
    BillingAccountName String COMMENT 'Its name',
    BillingCurrency String COMMENT 'USD',
    BillingPeriodEnd DateTime('UTC') COMMENT 'End of the month whose statement carries the charge, exclusive',
    BillingPeriodStart DateTime('UTC') COMMENT 'Start of the month whose statement carries the charge',
    ChargeCategory String COMMENT 'Usage',
    ChargeClass Nullable(String) COMMENT 'Correction for what came to light of a month after it was closed, and for another price of its calls; else NULL',
    ChargeDescription String COMMENT 'What was charged, in words',
    ChargeFrequency String COMMENT 'Usage-Based',
    ChargePeriodEnd DateTime('UTC') COMMENT 'End of the UTC day of the calls, exclusive',
    ChargePeriodStart DateTime('UTC') COMMENT 'Start of the UTC day of the calls',
    ConsumedQuantity Nullable(Decimal(38, 0)) COMMENT 'Tokens of all classes; below zero for those of calls that others replaced; NULL for another price',
    ConsumedUnit Nullable(String) COMMENT 'Tokens; NULL for another price',
    ContractedCost Decimal(38, 12) COMMENT 'As BilledCost: the prices are those agreed',
    EffectiveCost Decimal(38, 12) COMMENT 'As BilledCost: nothing is paid in advance',
    HostProviderName String COMMENT 'Who runs the model; who hosts them is not known',
    InvoiceIssuerName String COMMENT 'Who bills for the calls: the model''s provider',
    ListCost Decimal(38, 12) COMMENT 'As BilledCost: list prices beside agreed ones are not known',
    PricingQuantity Nullable(Decimal(38, 0)) COMMENT 'As ConsumedQuantity',
    PricingUnit Nullable(String) COMMENT 'As ConsumedUnit',
    ServiceCategory String COMMENT 'AI and Machine Learning',
    ServiceName String COMMENT 'The model',
    ServiceProviderName String COMMENT 'Who runs the model',
    ServiceSubcategory String COMMENT 'Generative AI, or Machine Learning for embeddings of documents and searches',
    SkuId String COMMENT 'The model as provider/model',
    SkuMeter String COMMENT 'Tokens',
    SkuPriceId String COMMENT 'As SkuId',
    SubAccountId String COMMENT 'The tenant',
    SubAccountName Nullable(String) COMMENT 'The name people call the tenant by; NULL if it is not known',
    Tags String COMMENT 'JSON: feature, service and stage',
    x_BookedDate Date COMMENT 'A day of the billing period. The day of the calls; of late usage of a closed month the period''s first day; of another price the day it was booked, or the period''s last if that is before. Exports go by it',
    x_Calls Nullable(Int64) COMMENT 'Model and embedding calls; below zero for those that others replaced; NULL for another price',
    x_CacheReadTokens Nullable(Int64) COMMENT 'Input tokens read from the provider''s cache; NULL for another price',
    x_CacheWriteTokens Nullable(Int64) COMMENT 'Input tokens written to the provider''s cache; NULL for another price',
    x_ChargedCost Decimal(38, 12) COMMENT 'What the tenant is charged for the calls',
    x_Estimated Bool COMMENT 'The costs are estimates',
    x_OutputTokens Nullable(Int64) COMMENT 'Visible output tokens; NULL for another price',
    x_ReasoningTokens Nullable(Int64) COMMENT 'Output tokens spent on reasoning that is not shown; NULL for another price',
    x_UncachedInputTokens Nullable(Int64) COMMENT 'Input tokens outside the provider''s cache; NULL for another price'
)
AS SELECT
    charge.cost AS BilledCost,
    'headwater' AS BillingAccountId,
    'Headwater' AS BillingAccountName,
    'USD' AS BillingCurrency,
    toDateTime(addMonths(charge.month, 1), 'UTC') AS BillingPeriodEnd,
    toDateTime(charge.month, 'UTC') AS BillingPeriodStart,
    'Usage' AS ChargeCategory,
    if(charge.correction, 'Correction', NULL) AS ChargeClass,
    concat(
        multiIf(charge.adjustment, 'Correction of calls of ', charge.correction, 'Late usage of ', 'Calls of '),
        charge.provider, '/', charge.model, ' by ', charge.service) AS ChargeDescription,
    'Usage-Based' AS ChargeFrequency,
    toDateTime(charge.day + 1, 'UTC') AS ChargePeriodEnd,
    toDateTime(charge.day, 'UTC') AS ChargePeriodStart,
    if(charge.adjustment, NULL, toDecimal128(uncached + cache_read + cache_write + output + reasoning, 0)) AS ConsumedQuantity,
    if(charge.adjustment, NULL, 'Tokens') AS ConsumedUnit,
    charge.cost AS ContractedCost,
    charge.cost AS EffectiveCost,
    charge.provider AS HostProviderName,
    charge.provider AS InvoiceIssuerName,
    charge.cost AS ListCost,
    ConsumedQuantity AS PricingQuantity,
    ConsumedUnit AS PricingUnit,
    'AI and Machine Learning' AS ServiceCategory,
    charge.model AS ServiceName,
    charge.provider AS ServiceProviderName,
    if(charge.service = 'inference', 'Generative AI', 'Machine Learning') AS ServiceSubcategory,
    concat(charge.provider, '/', charge.model) AS SkuId,
    'Tokens' AS SkuMeter,
    SkuId AS SkuPriceId,
    charge.tenant_id AS SubAccountId,
    nullIf(tenant.display_name, '') AS SubAccountName,
    toJSONString(map('feature', charge.feature, 'service', charge.service, 'stage', charge.stage)) AS Tags,
    charge.booked AS x_BookedDate,
    if(charge.adjustment, NULL, charge.calls) AS x_Calls,
    if(charge.adjustment, NULL, charge.cache_read) AS x_CacheReadTokens,
    if(charge.adjustment, NULL, charge.cache_write) AS x_CacheWriteTokens,
    charge.charged AS x_ChargedCost,
    charge.estimated AS x_Estimated,
    if(charge.adjustment, NULL, charge.output) AS x_OutputTokens,
    if(charge.adjustment, NULL, charge.reasoning) AS x_ReasoningTokens,
    if(charge.adjustment, NULL, charge.uncached) AS x_UncachedInputTokens
FROM
(
    SELECT
        billed.month AS month, billed.day AS day, billed.adjustment AS adjustment, billed.estimated AS estimated,
        -- An adjustment may be booked after the month that carries it, while that is still open.
        greatest(billed.month, least(billed.booked_on, toLastDayOfMonth(billed.month))) AS booked,
        toStartOfMonth(billed.day) < billed.month AS correction,
        toString(billed.tenant_id) AS tenant_id, toString(billed.service) AS service, toString(billed.feature) AS feature,
        toString(billed.stage) AS stage, toString(billed.provider) AS provider, toString(billed.model) AS model,
        billed.calls AS calls, billed.uncached_input_tokens AS uncached, billed.cache_read_tokens AS cache_read,
        billed.cache_write_tokens AS cache_write, billed.output_tokens AS output, billed.reasoning_tokens AS reasoning,
        billed.cost_usd AS cost, billed.charged_usd AS charged
    FROM headwater.billed_charges AS billed
) AS charge
LEFT JOIN (SELECT toString(tenant_id) AS tenant_id, display_name FROM headwater.tenants FINAL) AS tenant
    ON tenant.tenant_id = charge.tenant_id
COMMENT 'Costs by day as FOCUS 1.4 has them; what `headwater export focus` writes';

-- A request's outcome is that of all its calls: those that searches of earlier releases told do not name it.
CREATE OR REPLACE VIEW headwater.cost_per_outcome
(
    tenant_id LowCardinality(String) COMMENT 'Whose outcome it is',
    outcome_id String COMMENT 'The business outcome, as requests name it',
    requests UInt64 COMMENT 'Requests that worked towards it',
    calls UInt64 COMMENT 'Model and embedding calls of those requests, searches included',
    cost_usd Decimal(38, 12) COMMENT 'What they cost in US dollars',
    charged_usd Decimal(38, 12) COMMENT 'What the tenant is charged for them in US dollars',
    succeeded Nullable(Bool) COMMENT 'It came about; NULL if nobody has loaded what became of it',
    value_usd Nullable(Decimal(38, 12)) COMMENT 'What it is worth in US dollars; NULL if that is not known',
    decided_at Nullable(DateTime64(3, 'UTC')) COMMENT 'When it was decided; NULL if nobody has loaded that'
)
AS SELECT
    both.tenant_id AS tenant_id,
    both.outcome_id AS outcome_id,
    uniqExactIf(both.request_id, both.calls > 0) AS requests,
    sum(both.calls) AS calls,
    sum(both.cost) AS cost_usd,
    sum(both.charged) AS charged_usd,
    max(both.succeeded) AS succeeded,
    max(both.value) AS value_usd,
    max(both.at) AS decided_at
FROM
(
    SELECT
        call.tenant_id AS tenant_id,
        if(call.outcome_id != '', call.outcome_id, request.named) AS outcome_id,
        call.request_id AS request_id,
        toUInt64(1) AS calls,
        call.cost_usd AS cost,
        call.charged_usd AS charged,
        CAST(NULL, 'Nullable(Bool)') AS succeeded,
        CAST(NULL, 'Nullable(Decimal(38, 12))') AS value,
        CAST(NULL, 'Nullable(DateTime64(3, \'UTC\'))') AS at
    FROM headwater.usage_events AS call FINAL
    INNER JOIN
    (
        SELECT one.tenant_id AS tenant_id, one.request_id AS request_id, max(one.outcome_id) AS named
        FROM headwater.usage_events AS one FINAL
        WHERE one.outcome_id != ''
        GROUP BY tenant_id, request_id
    ) AS request ON request.tenant_id = call.tenant_id AND request.request_id = call.request_id
    UNION ALL
    SELECT
        outcome.tenant_id, outcome.outcome_id, toUUID('00000000-0000-0000-0000-000000000000'), 0,
        toDecimal128(0, 12), toDecimal128(0, 12), outcome.succeeded, outcome.value_usd, outcome.at
    FROM headwater.outcomes AS outcome FINAL
) AS both
GROUP BY tenant_id, outcome_id
COMMENT 'What every business outcome cost, and what became of it';

-- As in step 10, but with labels of requests that only searched.
CREATE OR REPLACE VIEW headwater.interactions
(
    asked_at DateTime64(3, 'UTC') COMMENT 'When its first call was made',
    tenant_id LowCardinality(String) COMMENT 'Whom to charge',
    request_id UUID COMMENT 'The request',
    feature LowCardinality(String) COMMENT 'Feature of the product; empty if the caller named none',
    key_id LowCardinality(String) COMMENT 'The API key that made it; empty if none did',
    outcome_id String COMMENT 'The business outcome it works towards; empty if the caller named none',
    user String COMMENT 'A pseudonym of the person who asked; empty if the caller named none',
    labels Map(LowCardinality(String), String) COMMENT 'What else the caller groups costs by',
    stages Array(String) COMMENT 'Stages of the cascade that were called, in order; empty for a search',
    answered_by LowCardinality(String) COMMENT 'The stage whose answer was the last to succeed; empty if none did',
    model LowCardinality(String) COMMENT 'The model of that answer, as provider/model; empty if none succeeded',
    succeeded Bool COMMENT 'One of its stages gave an answer; a search: its embedding succeeded',
    calls UInt64 COMMENT 'Model and embedding calls, retries included',
    input_tokens UInt64 COMMENT 'Input tokens of every class',
    output_tokens UInt64 COMMENT 'Output tokens of every class',
    cost_usd Decimal(38, 12) COMMENT 'What the calls cost in US dollars',
    charged_usd Decimal(38, 12) COMMENT 'What the tenant is charged for them in US dollars',
    estimated Bool COMMENT 'Some of the cost is an estimate',
    latency_ms UInt64 COMMENT 'From the start of its first call to the end of its last, in milliseconds'
)
AS SELECT
    min(call.event_time) AS asked_at,
    call.tenant_id AS tenant_id,
    call.request_id AS request_id,
    max(call.feature) AS feature,
    max(call.key_id) AS key_id,
    max(call.outcome_id) AS outcome_id,
    max(call.user) AS user,
    argMax(call.labels, length(call.labels)) AS labels,
    arrayCompact(arrayMap(each -> each.3, arraySort(groupArrayIf(
        (call.event_time, call.event_id, toString(call.stage)), call.service = 'inference')))) AS stages,
    argMaxIf(call.stage, (call.event_time, call.event_id), call.succeeded AND call.service = 'inference') AS answered_by,
    argMaxIf(concat(call.provider, '/', call.model), (call.event_time, call.event_id),
        call.succeeded AND call.service = 'inference') AS model,
    if(has(groupUniqArray(call.service), 'inference'), countIf(call.succeeded AND call.service = 'inference') > 0,
        max(call.succeeded)) AS succeeded,
    count() AS calls,
    sum(call.uncached_input_tokens + call.cache_read_tokens + call.cache_write_tokens) AS input_tokens,
    sum(call.output_tokens + call.reasoning_tokens) AS output_tokens,
    sum(call.cost_usd) AS cost_usd,
    sum(call.charged_usd) AS charged_usd,
    max(call.estimated) AS estimated,
    toUInt64(max(toUnixTimestamp64Milli(call.event_time) + toInt64(call.latency_ms))
        - min(toUnixTimestamp64Milli(call.event_time))) AS latency_ms
FROM headwater.usage_events AS call FINAL
WHERE call.service IN ('inference', 'retrieval')
GROUP BY tenant_id, request_id
COMMENT 'One row a request, without its text: what was called for it, what it cost, how it ended';

ALTER TABLE headwater.usage_events COMMENT COLUMN key_id 'The API key that made the request or put the document; empty if none did, and of searches and documents that earlier releases told';

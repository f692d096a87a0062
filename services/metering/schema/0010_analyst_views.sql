-- Views read FINAL, so that nobody who reads them need know about it, and the rollups wherever those hold what is asked.
-- Those of requests read usage_events: name a tenant where you can, it bounds what they read.

-- The rule for a spike, here and in alerts. An hour of a tenant is compared with the same hour of each of the 14 days
-- before (0 where nothing was spent; days before the tenant's first are left out; at least 7 are needed):
--   typical  is their median, spread the median of their distances from it (MAD): both ignore a few odd days;
--   weekly   is the lesser of the same hour one and two weeks before: what comes every week is no spike;
--   expected is the greater of typical and weekly.
-- It is a spike when it costs more than twice what was expected, more than 6 spreads above it (4 standard deviations of
-- a normal distribution), and at least a dollar and a 280th of the tenant's last 28 days (a tenth of a day) above it.
-- Median and MAD as robust location and scale: Rousseeuw and Croux, 1993.
CREATE VIEW IF NOT EXISTS headwater.cost_anomalies
(
    hour DateTime('UTC') COMMENT 'Start of the hour; it is over and in the last 14 days',
    tenant_id LowCardinality(String) COMMENT 'Whose cost it is',
    cost_usd Decimal(38, 12) COMMENT 'What the hour cost in US dollars',
    expected_usd Decimal(38, 12) COMMENT 'The median of the same hour on the 14 days before, or what came both one and two weeks before if that is more',
    spread_usd Decimal(38, 12) COMMENT 'Median distance of the same hour on those days from their median',
    excess_usd Decimal(38, 12) COMMENT 'How far cost_usd is above expected_usd',
    days UInt8 COMMENT 'How many days before it was compared with'
)
AS WITH
    toStartOfHour(now('UTC')) AS this_hour,
    hours AS
    (
        SELECT rollup.tenant_id AS tenant_id, rollup.hour AS hour, sum(rollup.cost_usd) AS usd
        FROM headwater.cost_hourly AS rollup FINAL
        WHERE rollup.hour >= this_hour - INTERVAL 28 DAY AND rollup.hour < this_hour
        GROUP BY tenant_id, hour
    ),
    tenants_seen AS
    (
        SELECT
            rollup.tenant_id AS tenant_id,
            toDateTime(min(rollup.day), 'UTC') AS first_hour,
            sumIf(rollup.cost_usd, rollup.day >= toDate(this_hour) - 28) AS recent_usd
        FROM headwater.cost_daily AS rollup FINAL
        WHERE rollup.calls > 0
        GROUP BY tenant_id
    ),
    -- Hours large enough to be a spike: few, and only they are compared.
    candidates AS
    (
        SELECT hours.tenant_id AS tenant_id, hours.hour AS hour
        FROM hours
        INNER JOIN tenants_seen AS seen ON seen.tenant_id = hours.tenant_id
        WHERE hours.hour >= this_hour - INTERVAL 14 DAY AND hours.usd >= 1 AND 280 * hours.usd >= seen.recent_usd
    ),
    compared AS
    (
        SELECT
            moved.tenant_id AS tenant_id,
            moved.hour AS hour,
            sumIf(moved.usd, moved.back = 0) AS usd,
            groupArrayIf(moved.usd, moved.back > 0) AS earlier,
            least(sumIf(moved.usd, moved.back = 7), sumIf(moved.usd, moved.back = 14)) AS weekly
        FROM
        (
            SELECT
                hours.tenant_id AS tenant_id,
                arrayJoin(range(15)) AS back,
                hours.hour + toIntervalDay(back) AS hour,
                hours.usd AS usd
            FROM hours
        ) AS moved
        WHERE (moved.tenant_id, moved.hour) IN (SELECT candidates.tenant_id, candidates.hour FROM candidates)
        GROUP BY tenant_id, hour
    ),
    seasons AS
    (
        SELECT
            compared.tenant_id AS tenant_id,
            compared.hour AS hour,
            compared.usd AS usd,
            seen.recent_usd AS recent_usd,
            least(14, intDiv(dateDiff('hour', seen.first_hour, compared.hour), 24)) AS days,
            intDiv(days + 1, 2) AS middle,
            arraySort(arrayResize(compared.earlier, days, toDecimal128(0, 12))) AS past,
            arraySort(arrayMap(one -> abs(one - past[middle]), past))[middle] AS spread,
            greatest(past[middle], compared.weekly) AS expected
        FROM compared
        INNER JOIN tenants_seen AS seen ON seen.tenant_id = compared.tenant_id
    )
SELECT
    seasons.hour AS hour,
    seasons.tenant_id AS tenant_id,
    seasons.usd AS cost_usd,
    seasons.expected AS expected_usd,
    seasons.spread AS spread_usd,
    seasons.usd - seasons.expected AS excess_usd,
    toUInt8(seasons.days) AS days
FROM seasons
WHERE seasons.days >= 7
    AND seasons.usd > 2 * seasons.expected
    AND seasons.usd - seasons.expected > 6 * seasons.spread
    AND seasons.usd - seasons.expected >= 1
    AND 280 * (seasons.usd - seasons.expected) >= seasons.recent_usd
COMMENT 'Hours that cost a tenant far more than its own season lets expect';

-- A request is one question, whatever was called for it. Its reference is the highest that any of its calls names.
CREATE VIEW IF NOT EXISTS headwater.cascade_savings_daily
(
    day Date COMMENT 'The UTC day of the request''s first call',
    tenant_id LowCardinality(String) COMMENT 'Whom to charge',
    feature LowCardinality(String) COMMENT 'Feature of the product; empty if the caller named none',
    answered_by LowCardinality(String) COMMENT 'The stage whose answer was the last to succeed; empty if none did',
    requests UInt64 COMMENT 'Requests that stages were called for',
    compared_requests UInt64 COMMENT 'Those of them whose reference is known',
    cost_usd Decimal(38, 12) COMMENT 'What the stages'' calls cost in US dollars, of all requests',
    compared_cost_usd Decimal(38, 12) COMMENT 'The same, of compared_requests alone',
    reference_usd Nullable(Decimal(38, 12)) COMMENT 'What the policy''s last stage alone would have cost for compared_requests, by estimate; NULL if none is known',
    saved_usd Nullable(Decimal(38, 12)) COMMENT 'reference_usd less compared_cost_usd; below zero where escalating cost more; NULL if no reference is known'
)
AS SELECT
    request.day AS day,
    request.tenant_id AS tenant_id,
    request.feature AS feature,
    request.answered_by AS answered_by,
    count() AS requests,
    countIf(request.reference IS NOT NULL) AS compared_requests,
    sum(request.cost) AS cost_usd,
    sumIf(request.cost, request.reference IS NOT NULL) AS compared_cost_usd,
    sum(request.reference) AS reference_usd,
    sum(request.reference - request.cost) AS saved_usd
FROM
(
    SELECT
        call.tenant_id AS tenant_id,
        call.request_id AS request_id,
        toDate(min(call.event_time), 'UTC') AS day,
        max(call.feature) AS feature,
        argMaxIf(call.stage, (call.event_time, call.event_id), call.succeeded) AS answered_by,
        sum(call.cost_usd) AS cost,
        max(call.reference_usd) AS reference
    FROM headwater.usage_events AS call FINAL
    WHERE call.service = 'inference'
    GROUP BY tenant_id, request_id
) AS request
GROUP BY day, tenant_id, feature, answered_by
COMMENT 'What the cascade saved against always asking its last stage, and which stage answered, by UTC day';

CREATE VIEW IF NOT EXISTS headwater.cache_savings_daily
(
    day Date COMMENT 'The UTC day',
    tenant_id LowCardinality(String) COMMENT 'Whom to charge',
    feature LowCardinality(String) COMMENT 'Feature of the product; empty if the caller named none',
    provider LowCardinality(String) COMMENT 'Who runs the model and its cache',
    model LowCardinality(String) COMMENT 'The model',
    calls UInt64 COMMENT 'Model and embedding calls',
    cache_read_tokens UInt64 COMMENT 'Input tokens read from the provider''s cache',
    cache_write_tokens UInt64 COMMENT 'Input tokens written to the provider''s cache',
    cost_usd Decimal(38, 12) COMMENT 'What the calls cost in US dollars',
    without_cache_usd Decimal(38, 12) COMMENT 'What they would have cost had the provider cached nothing',
    saved_usd Decimal(38, 12) COMMENT 'without_cache_usd less cost_usd; below zero where writing to the cache cost more than reading it saved'
)
AS SELECT
    toDate(call.event_time, 'UTC') AS day,
    call.tenant_id AS tenant_id,
    call.feature AS feature,
    call.provider AS provider,
    call.model AS model,
    count() AS calls,
    sum(call.cache_read_tokens) AS cache_read_tokens,
    sum(call.cache_write_tokens) AS cache_write_tokens,
    sum(call.cost_usd) AS cost_usd,
    sum(call.without_cache_usd) AS without_cache_usd,
    sum(call.without_cache_usd - call.cost_usd) AS saved_usd
FROM headwater.usage_events AS call FINAL
GROUP BY day, tenant_id, feature, provider, model
COMMENT 'What the providers'' caches saved, by UTC day';

CREATE VIEW IF NOT EXISTS headwater.cost_per_outcome
(
    tenant_id LowCardinality(String) COMMENT 'Whose outcome it is',
    outcome_id String COMMENT 'The business outcome, as requests name it',
    requests UInt64 COMMENT 'Requests that worked towards it',
    calls UInt64 COMMENT 'Model and embedding calls of those requests',
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
        call.outcome_id AS outcome_id,
        call.request_id AS request_id,
        toUInt64(1) AS calls,
        call.cost_usd AS cost,
        call.charged_usd AS charged,
        CAST(NULL, 'Nullable(Bool)') AS succeeded,
        CAST(NULL, 'Nullable(Decimal(38, 12))') AS value,
        CAST(NULL, 'Nullable(DateTime64(3, \'UTC\'))') AS at
    FROM headwater.usage_events AS call FINAL
    WHERE call.outcome_id != ''
    UNION ALL
    SELECT
        outcome.tenant_id, outcome.outcome_id, toUUID('00000000-0000-0000-0000-000000000000'), 0,
        toDecimal128(0, 12), toDecimal128(0, 12), outcome.succeeded, outcome.value_usd, outcome.at
    FROM headwater.outcomes AS outcome FINAL
) AS both
GROUP BY tenant_id, outcome_id
COMMENT 'What every business outcome cost, and what became of it';

CREATE VIEW IF NOT EXISTS headwater.tenant_margin_monthly
(
    month Date COMMENT 'The UTC month, by its first day',
    tenant_id LowCardinality(String) COMMENT 'The tenant',
    plan LowCardinality(String) COMMENT 'The plan it had when the month ended, or has; empty if it is not known',
    revenue_usd Nullable(Decimal(38, 12)) COMMENT 'What it pays for the month in US dollars: what was loaded into revenue, else its plan''s whole price when the month ended; NULL if neither is known',
    revenue_from LowCardinality(String) COMMENT 'Where revenue_usd is from: loaded or plan; empty if it is NULL',
    cost_usd Decimal(38, 12) COMMENT 'What its calls cost in US dollars, with later corrections of their prices',
    charged_usd Decimal(38, 12) COMMENT 'What it is charged for them in US dollars, with later corrections',
    margin_usd Nullable(Decimal(38, 12)) COMMENT 'revenue_usd less cost_usd; NULL if no revenue is known',
    margin_ratio Nullable(Float64) COMMENT 'margin_usd as a share of revenue_usd; NULL where that is not above zero'
)
AS WITH
    plans_by_month AS
    (
        SELECT
            held.tenant_id AS tenant_id,
            held.month AS month,
            argMax(held.plan, held.valid_from) AS plan,
            toDateTime64(addMonths(held.month, 1), 3, 'UTC') AS month_end
        FROM
        (
            SELECT
                history.tenant_id AS tenant_id,
                history.plan AS plan,
                history.valid_from AS valid_from,
                arrayJoin(range(toUInt32(greatest(0, 1 + dateDiff('month', history.valid_from, now64(3, 'UTC')))))) AS later,
                addMonths(toStartOfMonth(history.valid_from), later) AS month
            FROM headwater.tenant_plans AS history FINAL
        ) AS held
        GROUP BY tenant_id, month
    ),
    known AS
    (
        SELECT toStartOfMonth(rollup.day) AS month, rollup.tenant_id AS tenant_id, rollup.cost_usd AS cost, rollup.charged_usd AS charged,
            CAST(NULL, 'Nullable(Decimal(38, 12))') AS loaded, CAST(NULL, 'Nullable(Decimal(38, 12))') AS price, '' AS plan
        FROM headwater.cost_daily AS rollup FINAL
        WHERE rollup.calls > 0
        UNION ALL
        SELECT correction.month, correction.tenant_id, correction.cost_usd, correction.charged_usd, NULL, NULL, ''
        FROM headwater.cost_adjustments AS correction FINAL
        UNION ALL
        SELECT paid.month, paid.tenant_id, toDecimal128(0, 12), toDecimal128(0, 12), paid.amount_usd, NULL, ''
        FROM headwater.revenue AS paid FINAL
        UNION ALL
        SELECT by_month.month, by_month.tenant_id, toDecimal128(0, 12), toDecimal128(0, 12), NULL,
            if(priced.deleted, NULL, priced.monthly_price_usd), by_month.plan
        FROM plans_by_month AS by_month
        ASOF LEFT JOIN (SELECT * FROM headwater.plans FINAL) AS priced
            ON priced.plan = by_month.plan AND by_month.month_end > priced.valid_from
        WHERE by_month.plan != ''
    ),
    summed AS
    (
        SELECT
            known.month AS month,
            known.tenant_id AS tenant_id,
            max(known.plan) AS plan,
            sum(known.loaded) AS loaded,
            max(known.price) AS price,
            sum(known.cost) AS cost,
            sum(known.charged) AS charged
        FROM known
        GROUP BY month, tenant_id
    )
SELECT
    summed.month AS month,
    summed.tenant_id AS tenant_id,
    summed.plan AS plan,
    coalesce(summed.loaded, summed.price) AS revenue_usd,
    multiIf(summed.loaded IS NOT NULL, 'loaded', summed.price IS NOT NULL, 'plan', '') AS revenue_from,
    summed.cost AS cost_usd,
    summed.charged AS charged_usd,
    revenue_usd - summed.cost AS margin_usd,
    if(revenue_usd > 0, toFloat64(margin_usd) / toFloat64(revenue_usd), NULL) AS margin_ratio
FROM summed
COMMENT 'What is left of what every tenant pays, by UTC month';

-- Spending as budgets count it: calls of inference. What is reserved at this moment only the ledger knows (GetBudget).
CREATE VIEW IF NOT EXISTS headwater.budget_status
(
    tenant_id LowCardinality(String) COMMENT 'Whose budget it is',
    scope LowCardinality(String) COMMENT 'What it limits: tenant, feature or key',
    feature LowCardinality(String) COMMENT 'The feature it limits; empty if it limits none',
    key_id LowCardinality(String) COMMENT 'The API key it limits; empty if it limits none',
    period LowCardinality(String) COMMENT 'day or month, in UTC',
    period_start Date COMMENT 'First day of the current period',
    from_plan Bool COMMENT 'It is what the tenant''s plan allows, as the tenant has no monthly budget of its own',
    cap_usd Decimal(38, 12) COMMENT 'What may be spent in the period in US dollars',
    spent_usd Decimal(38, 12) COMMENT 'What was spent in it so far, seconds behind',
    left_usd Decimal(38, 12) COMMENT 'What is left of cap_usd; never below zero',
    used_percent Nullable(Float64) COMMENT 'spent_usd as a percentage of cap_usd; NULL if that is zero'
)
AS WITH
    toDate(now('UTC'), 'UTC') AS today,
    set_budgets AS
    (
        SELECT tenant_id, scope, feature, key_id, period, cap_usd
        FROM headwater.budgets FINAL
        WHERE NOT deleted
    ),
    caps AS
    (
        SELECT tenant_id, scope, feature, key_id, period, cap_usd, false AS from_plan
        FROM set_budgets
        UNION ALL
        SELECT tenant.tenant_id, 'tenant', '', '', 'month', assumeNotNull(latest.monthly_cap_usd), true
        FROM headwater.tenants AS tenant FINAL
        INNER JOIN
        (
            SELECT plan, monthly_cap_usd, deleted
            FROM headwater.plans FINAL
            ORDER BY valid_from DESC
            LIMIT 1 BY plan
        ) AS latest ON latest.plan = tenant.plan
        WHERE NOT tenant.deleted AND NOT latest.deleted AND latest.monthly_cap_usd IS NOT NULL
            AND tenant.tenant_id NOT IN (SELECT tenant_id FROM set_budgets WHERE scope = 'tenant' AND period = 'month')
    ),
    spending AS
    (
        SELECT rollup.tenant_id AS tenant_id, arrayJoin(['tenant', 'feature']) AS scope,
            if(scope = 'feature', rollup.feature, '') AS feature, '' AS key_id, rollup.day AS day, rollup.cost_usd AS usd
        FROM headwater.cost_daily AS rollup FINAL
        WHERE rollup.day >= toStartOfMonth(today) AND rollup.service = 'inference'
        UNION ALL
        SELECT call.tenant_id, 'key', '', call.key_id, toDate(call.event_time, 'UTC'), call.cost_usd
        FROM headwater.usage_events AS call FINAL
        WHERE call.event_time >= toDateTime64(toStartOfMonth(today), 3, 'UTC') AND call.service = 'inference'
            AND (call.tenant_id, call.key_id) IN (SELECT tenant_id, key_id FROM set_budgets WHERE scope = 'key')
    ),
    spent AS
    (
        SELECT tenant_id, scope, feature, key_id, arrayJoin(if(day = today, ['day', 'month'], ['month'])) AS period,
            sum(usd) AS usd
        FROM spending
        GROUP BY tenant_id, scope, feature, key_id, period
    )
SELECT
    caps.tenant_id AS tenant_id,
    caps.scope AS scope,
    caps.feature AS feature,
    caps.key_id AS key_id,
    caps.period AS period,
    if(caps.period = 'day', today, toStartOfMonth(today)) AS period_start,
    caps.from_plan AS from_plan,
    caps.cap_usd AS cap_usd,
    spent.usd AS spent_usd,
    greatest(caps.cap_usd - spent.usd, toDecimal128(0, 12)) AS left_usd,
    if(caps.cap_usd > 0, 100 * toFloat64(spent.usd) / toFloat64(caps.cap_usd), NULL) AS used_percent
FROM caps
LEFT JOIN spent ON spent.tenant_id = caps.tenant_id AND spent.scope = caps.scope AND spent.feature = caps.feature
    AND spent.key_id = caps.key_id AND spent.period = caps.period
COMMENT 'How far every budget is used in its current period';

-- Nothing of what was asked or answered is stored, and of the person a pseudonym. Indexing documents is no interaction.
CREATE VIEW IF NOT EXISTS headwater.interactions
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
    anyIf(call.labels, call.service = 'inference') AS labels,
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

-- FOCUS 1.4 (FinOps Open Cost and Usage Specification, ratified June 2026), dataset Cost and Usage: its mandatory columns,
-- the conditional ones that apply, then our own, which it wants to start with x_. Names and order are the specification's.
-- There is one price a token class and not one a row, so no unit prices; tokens by class are in our own columns.
CREATE VIEW IF NOT EXISTS headwater.focus_costs
(
    BilledCost Decimal(38, 12) COMMENT 'What the model''s provider bills for the calls',
    BillingAccountId String COMMENT 'The account that is billed: this platform',
    BillingAccountName String COMMENT 'Its name',
    BillingCurrency String COMMENT 'USD',
    BillingPeriodEnd DateTime('UTC') COMMENT 'End of the month in which the charge was booked, exclusive',
    BillingPeriodStart DateTime('UTC') COMMENT 'Start of the month in which the charge was booked',
    ChargeCategory String COMMENT 'Usage',
    ChargeClass Nullable(String) COMMENT 'Correction for the correction of a closed month, else NULL',
    ChargeDescription String COMMENT 'What was charged, in words',
    ChargeFrequency String COMMENT 'Usage-Based',
    ChargePeriodEnd DateTime('UTC') COMMENT 'End of the UTC day of the calls, exclusive',
    ChargePeriodStart DateTime('UTC') COMMENT 'Start of the UTC day of the calls',
    ConsumedQuantity Nullable(Decimal(38, 0)) COMMENT 'Tokens of all classes; NULL for a correction',
    ConsumedUnit Nullable(String) COMMENT 'Tokens; NULL for a correction',
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
    x_BookedDate Date COMMENT 'The day of the calls; of a correction, the day it was booked. Exports go by it',
    x_Calls Nullable(UInt64) COMMENT 'Model and embedding calls; NULL for a correction',
    x_CacheReadTokens Nullable(UInt64) COMMENT 'Input tokens read from the provider''s cache; NULL for a correction',
    x_CacheWriteTokens Nullable(UInt64) COMMENT 'Input tokens written to the provider''s cache; NULL for a correction',
    x_ChargedCost Decimal(38, 12) COMMENT 'What the tenant is charged for the calls',
    x_Estimated Bool COMMENT 'The costs are estimates',
    x_OutputTokens Nullable(UInt64) COMMENT 'Visible output tokens; NULL for a correction',
    x_ReasoningTokens Nullable(UInt64) COMMENT 'Output tokens spent on reasoning that is not shown; NULL for a correction',
    x_UncachedInputTokens Nullable(UInt64) COMMENT 'Input tokens outside the provider''s cache; NULL for a correction'
)
AS SELECT
    charge.cost AS BilledCost,
    'headwater' AS BillingAccountId,
    'Headwater' AS BillingAccountName,
    'USD' AS BillingCurrency,
    toDateTime(addMonths(toStartOfMonth(charge.booked), 1), 'UTC') AS BillingPeriodEnd,
    toDateTime(toStartOfMonth(charge.booked), 'UTC') AS BillingPeriodStart,
    'Usage' AS ChargeCategory,
    if(charge.correction, 'Correction', NULL) AS ChargeClass,
    concat(if(charge.correction, 'Correction of calls of ', 'Calls of '), charge.provider, '/', charge.model, ' by ',
        charge.service) AS ChargeDescription,
    'Usage-Based' AS ChargeFrequency,
    toDateTime(charge.day + 1, 'UTC') AS ChargePeriodEnd,
    toDateTime(charge.day, 'UTC') AS ChargePeriodStart,
    if(charge.correction, NULL, toDecimal128(uncached + cache_read + cache_write + output + reasoning, 0)) AS ConsumedQuantity,
    if(charge.correction, NULL, 'Tokens') AS ConsumedUnit,
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
    if(charge.correction, NULL, charge.calls) AS x_Calls,
    if(charge.correction, NULL, charge.cache_read) AS x_CacheReadTokens,
    if(charge.correction, NULL, charge.cache_write) AS x_CacheWriteTokens,
    charge.charged AS x_ChargedCost,
    charge.estimated AS x_Estimated,
    if(charge.correction, NULL, charge.output) AS x_OutputTokens,
    if(charge.correction, NULL, charge.reasoning) AS x_ReasoningTokens,
    if(charge.correction, NULL, charge.uncached) AS x_UncachedInputTokens
FROM
(
    SELECT
        rollup.day AS day, rollup.day AS booked, false AS correction,
        toString(rollup.tenant_id) AS tenant_id, toString(rollup.service) AS service, toString(rollup.feature) AS feature,
        toString(rollup.stage) AS stage, toString(rollup.provider) AS provider, toString(rollup.model) AS model,
        rollup.estimated AS estimated, rollup.calls AS calls, rollup.uncached_input_tokens AS uncached,
        rollup.cache_read_tokens AS cache_read, rollup.cache_write_tokens AS cache_write,
        rollup.output_tokens AS output, rollup.reasoning_tokens AS reasoning,
        rollup.cost_usd AS cost, rollup.charged_usd AS charged
    FROM headwater.cost_daily AS rollup FINAL
    WHERE rollup.calls > 0
    UNION ALL
    SELECT
        toDate(booking.event_time, 'UTC') AS day, toDate(booking.booked_at, 'UTC') AS booked, true AS correction,
        toString(booking.tenant_id) AS tenant_id, toString(booking.service) AS service, toString(booking.feature) AS feature,
        toString(booking.stage) AS stage, toString(booking.provider) AS provider, toString(booking.model) AS model,
        false, toUInt64(0), toUInt64(0), toUInt64(0), toUInt64(0), toUInt64(0), toUInt64(0),
        sum(booking.cost_usd), sum(booking.charged_usd)
    FROM headwater.cost_adjustments AS booking FINAL
    GROUP BY day, booked, tenant_id, service, feature, stage, provider, model
) AS charge
LEFT JOIN (SELECT toString(tenant_id) AS tenant_id, display_name FROM headwater.tenants FINAL) AS tenant
    ON tenant.tenant_id = charge.tenant_id
COMMENT 'Costs by day as FOCUS 1.4 has them; what `headwater export focus` writes';

-- Released steps are frozen, so the reasons for how the large tables lie are given here; as comments, so that those who
-- query the tables see them as well.

-- Hours first, because both who writes and who sums up goes by the hour: what was told lately lies at the end, and an hour
-- that is summed up anew is one range. Tenants in the hour: a tenant's days are some granules of each hour. The event last
-- makes the key that of one call: versions of a call meet in a merge. They can, as its time is fixed when the event is made;
-- so they are in one partition too, and FINAL need look into no other. No TTL: see 0006_cost_daily.sql.
ALTER TABLE headwater.usage_events MODIFY COMMENT 'The truth: one row a model or embedding call. Read it with FINAL. Partitioned by month of the call: a month is closed, billed and one day dropped as a whole. Ordered by hour, then tenant: name a range of event_time, it bounds what is read';

-- The group is the whole key, so a sum that is computed anew replaces the one before it and nothing else.
ALTER TABLE headwater.cost_hourly MODIFY COMMENT 'usage_events summed up by hour, seconds behind it. Read it with FINAL. Partitioned by month as usage_events. Ordered by hour, as the last hours are those computed anew, then by the group that a row sums up: name a range of hours, it bounds what is read';

ALTER TABLE headwater.cost_daily MODIFY COMMENT 'cost_hourly summed up by UTC day, seconds behind it. Read it with FINAL. Partitioned by month as cost_hourly. Ordered by day, as the last days are those computed anew, then by tenant and the rest of the group: name a range of days, it bounds what is read';

ALTER TABLE headwater.cost_adjustments MODIFY COMMENT 'Corrections of calls in closed months: their rows in usage_events stay as they were billed. Read it with FINAL. Partitioned by the month corrected: a row told twice must meet its first telling. Ordered as usage_events, beside which it is read';

-- One row a rollup: nothing to partition, and the key is what it is looked up by.
ALTER TABLE headwater.rollup_progress MODIFY COMMENT 'How far the rollups are. Read it with FINAL. A few rows, ordered by the name they are looked up by';

-- A closed month has two costs, both right: that of its calls as they stand in usage_events, and the same with what was
-- booked in cost_adjustments since. Whoever reads the first must see that there is another.
ALTER TABLE headwater.tenant_cost_daily MODIFY COMMENT 'What every tenant cost, by UTC day; without adjustments of closed months, for which see tenant_cost_monthly';

ALTER TABLE headwater.feature_cost_daily MODIFY COMMENT 'What every feature cost each tenant, by UTC day; without adjustments of closed months';

ALTER TABLE headwater.model_cost_daily MODIFY COMMENT 'What every model cost, by UTC day; without adjustments of closed months';

ALTER TABLE headwater.budget_status MODIFY COMMENT 'How far every budget is used in its current period, at the prices of today: GetBudget and the limits go by the prices at which the calls were made';

CREATE VIEW IF NOT EXISTS headwater.tenant_cost_monthly
(
    month Date COMMENT 'The UTC month of the calls, by its first day',
    tenant_id LowCardinality(String) COMMENT 'Whom to charge',
    calls UInt64 COMMENT 'Model and embedding calls',
    cost_usd Decimal(38, 12) COMMENT 'What they cost in US dollars as tenant_cost_daily and QueryCosts have it',
    charged_usd Decimal(38, 12) COMMENT 'What the tenant is charged for them in US dollars, without adjustments',
    adjusted_cost_usd Decimal(38, 12) COMMENT 'By how much more they cost with all adjustments since the month was closed; below zero if they cost less',
    adjusted_charged_usd Decimal(38, 12) COMMENT 'The same of what is charged',
    total_cost_usd Decimal(38, 12) COMMENT 'cost_usd and adjusted_cost_usd: what is known now, as tenant_margin_monthly has it',
    total_charged_usd Decimal(38, 12) COMMENT 'charged_usd and adjusted_charged_usd'
)
AS SELECT
    part.month AS month,
    part.tenant_id AS tenant_id,
    sum(part.n) AS calls,
    sum(part.cost) AS cost_usd,
    sum(part.charged) AS charged_usd,
    sum(part.more_cost) AS adjusted_cost_usd,
    sum(part.more_charged) AS adjusted_charged_usd,
    cost_usd + adjusted_cost_usd AS total_cost_usd,
    charged_usd + adjusted_charged_usd AS total_charged_usd
FROM
(
    SELECT toStartOfMonth(rollup.day) AS month, rollup.tenant_id AS tenant_id, rollup.calls AS n,
        rollup.cost_usd AS cost, rollup.charged_usd AS charged,
        toDecimal128(0, 12) AS more_cost, toDecimal128(0, 12) AS more_charged
    FROM headwater.cost_daily AS rollup FINAL
    WHERE rollup.calls > 0
    UNION ALL
    SELECT booking.month, booking.tenant_id, toUInt64(0), toDecimal128(0, 12), toDecimal128(0, 12),
        booking.cost_usd, booking.charged_usd
    FROM headwater.cost_adjustments AS booking FINAL
) AS part
GROUP BY month, tenant_id
COMMENT 'What every tenant cost by UTC month of the calls: as their rows have it, what adjustments of closed months changed, and both together';

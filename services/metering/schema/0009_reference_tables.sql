-- What costs are compared with: who the tenants are, what they pay, what they may spend, what came of it. All of it is
-- small (rows a tenant, not rows a call), is corrected by writing the row again, and explains old reports: no partitions,
-- no TTL, and the key that identifies a row is the order it lies in.
CREATE TABLE IF NOT EXISTS headwater.tenants
(
    tenant_id LowCardinality(String) COMMENT 'The tenant',
    display_name String COMMENT 'The name people call it by',
    plan LowCardinality(String) COMMENT 'Its plan; the default one where it has none of its own',
    created_at DateTime64(3, 'UTC') COMMENT 'When it was created',
    deleted Bool COMMENT 'It is no tenant any more',
    version UInt64 COMMENT 'Of rows of the same tenant the one with the highest version counts'
)
ENGINE = ReplacingMergeTree(version)
ORDER BY tenant_id
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'The tenants as they are, seconds behind. Read it with FINAL';

-- Apart from tenants, so that joining that one gives one row a tenant.
CREATE TABLE IF NOT EXISTS headwater.tenant_plans
(
    tenant_id LowCardinality(String) COMMENT 'The tenant',
    valid_from DateTime64(3, 'UTC') COMMENT 'Since when it has the plan, until its next row',
    plan LowCardinality(String) COMMENT 'The plan; empty when it was no tenant any more',
    version UInt64 COMMENT 'Of rows of the same tenant and time the one with the highest version counts'
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (tenant_id, valid_from)
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'Which plan every tenant had when. Read it with FINAL';

CREATE TABLE IF NOT EXISTS headwater.plans
(
    plan LowCardinality(String) COMMENT 'The plan',
    valid_from DateTime64(3, 'UTC') COMMENT 'Since when it is so, until its next row; 1970 for always',
    monthly_price_usd Nullable(Decimal(38, 12)) COMMENT 'What a tenant pays for it a month in US dollars; NULL if the settings do not say',
    monthly_cap_usd Nullable(Decimal(38, 12)) COMMENT 'What a tenant without a budget of its own may spend in a month in US dollars; NULL: no limit',
    is_default Bool COMMENT 'Tenants without a plan have it',
    deleted Bool COMMENT 'There is no such plan any more',
    version UInt64 COMMENT 'Of rows of the same plan and time the one with the highest version counts'
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (plan, valid_from)
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'What the plans are and were, from the settings. Read it with FINAL';

CREATE TABLE IF NOT EXISTS headwater.budgets
(
    tenant_id LowCardinality(String) COMMENT 'Whose budget it is',
    scope LowCardinality(String) COMMENT 'What it limits: tenant, feature or key',
    feature LowCardinality(String) COMMENT 'The feature it limits; empty if it limits none',
    key_id LowCardinality(String) COMMENT 'The API key it limits; empty if it limits none',
    period LowCardinality(String) COMMENT 'day or month, in UTC',
    cap_usd Decimal(38, 12) COMMENT 'What may be spent in each period in US dollars',
    thresholds Array(UInt8) COMMENT 'Percent of cap_usd at which an alert is raised',
    deleted Bool COMMENT 'The budget was removed',
    version UInt64 COMMENT 'Of rows of the same budget the one with the highest version counts'
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (tenant_id, scope, feature, key_id, period)
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'The budgets as they are set, seconds behind. Read it with FINAL';

CREATE TABLE IF NOT EXISTS headwater.revenue
(
    tenant_id LowCardinality(String) COMMENT 'Who pays',
    month Date COMMENT 'The month it is for, by its first day',
    source LowCardinality(String) COMMENT 'Where it comes from: subscription, usage, an invoice system',
    amount_usd Decimal(38, 12) COMMENT 'US dollars; below zero for a credit',
    version UInt64 COMMENT 'Of rows of the same tenant, month and source the one with the highest version counts'
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (tenant_id, month, source)
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'What tenants pay, loaded with `headwater revenue load`. Read it with FINAL';

CREATE TABLE IF NOT EXISTS headwater.outcomes
(
    tenant_id LowCardinality(String) COMMENT 'Whose outcome it is',
    outcome_id String COMMENT 'The business outcome, as requests name it',
    succeeded Bool COMMENT 'It came about',
    value_usd Nullable(Decimal(38, 12)) COMMENT 'What it is worth in US dollars; NULL if that is not known',
    at DateTime64(3, 'UTC') COMMENT 'When it was decided',
    version UInt64 COMMENT 'Of rows of the same outcome the one with the highest version counts'
)
ENGINE = ReplacingMergeTree(version)
ORDER BY (tenant_id, outcome_id)
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'What became of business outcomes, loaded with `headwater outcomes load`. Read it with FINAL';

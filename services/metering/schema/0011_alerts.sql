-- What was told, so that it is told once: the bus remembers for a month, and forgets with its data. Small, looked up by
-- id. Twice the longest period is enough for that; a year of it is kept for whoever asks what was alerted.
CREATE TABLE IF NOT EXISTS headwater.alerts
(
    alert_id UUID COMMENT 'Identifies the alert; derives from what it is about and when, so it is the same however often it is found',
    raised_at DateTime64(3, 'UTC') COMMENT 'When it was first told',
    tenant_id LowCardinality(String) COMMENT 'Whose it is; "-" when it is the platform''s own',
    kind LowCardinality(String) COMMENT 'budget_forecast, cost_spike, cost_drift or price_missing',
    severity LowCardinality(String) COMMENT 'info, warning or critical',
    about String COMMENT 'What it is about: a budget''s scope, a model',
    period String COMMENT 'When: 202611 for a month, 20261121 for a day; a week by its Monday',
    message String COMMENT 'A sentence for people',
    facts Map(LowCardinality(String), String) COMMENT 'The figures in it'
)
ENGINE = ReplacingMergeTree
ORDER BY alert_id
TTL toDateTime(raised_at) + INTERVAL 400 DAY
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'Alerts about costs, budgets to come and prices; thresholds of budgets and alerts of the audit are in stream ALERTS alone. Read it with FINAL';

-- Users for a ClickHouse server: analysts, who read everything, and tenants, who read their own rows of some tables. Not a
-- migration: chDB has no users, and on a server it takes a user that may manage access. Run it once, after the first
-- start and after upgrades: clickhouse-client --queries-file roles.sql

-- final: what a plain SELECT sums up is right before merges. readonly is last: a read-only session takes no setting.
CREATE SETTINGS PROFILE OR REPLACE headwater_reading SETTINGS
    final = 1, session_timezone = 'UTC', max_execution_time = 60, max_memory_usage = 4000000000,
    max_result_rows = 1000000, result_overflow_mode = 'throw', readonly = 1;

CREATE ROLE OR REPLACE headwater_analyst SETTINGS PROFILE headwater_reading;
GRANT SELECT ON headwater.* TO headwater_analyst;

-- Views run with the rights of who reads them, so a tenant is granted what is under them as well.
CREATE ROLE OR REPLACE headwater_tenant SETTINGS PROFILE headwater_reading;
GRANT SELECT ON headwater.usage_events TO headwater_tenant;
GRANT SELECT ON headwater.cost_hourly TO headwater_tenant;
GRANT SELECT ON headwater.cost_daily TO headwater_tenant;
GRANT SELECT ON headwater.outcomes TO headwater_tenant;
GRANT SELECT ON headwater.interactions TO headwater_tenant;
GRANT SELECT ON headwater.tenant_cost_daily TO headwater_tenant;
GRANT SELECT ON headwater.feature_cost_daily TO headwater_tenant;
GRANT SELECT ON headwater.cascade_savings_daily TO headwater_tenant;
GRANT SELECT ON headwater.cache_savings_daily TO headwater_tenant;
GRANT SELECT ON headwater.cost_per_outcome TO headwater_tenant;

-- Everybody sees every row, but who has the role of tenants only those of the tenant that the user is named for:
-- tenant_acme sees acme's, any other name sees none. Restrictive, so that no further policy widens it; the permissive
-- one is there because some servers show nothing to those for whom there is none.
CREATE ROW POLICY OR REPLACE headwater_all
    ON headwater.usage_events, headwater.cost_hourly, headwater.cost_daily, headwater.outcomes
    AS PERMISSIVE FOR SELECT USING 1 TO ALL;
CREATE ROW POLICY OR REPLACE headwater_own
    ON headwater.usage_events, headwater.cost_hourly, headwater.cost_daily, headwater.outcomes
    AS RESTRICTIVE FOR SELECT USING concat('tenant_', tenant_id) = currentUser() TO headwater_tenant;

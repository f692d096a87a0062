-- A mistaken entry of the price book must not cost a call the price that only its producer knew: when the entry is gone, the
-- call costs again what was told. NULL where nothing was re-rated, which is nearly always and takes no room: a copy of the
-- amounts in every row would make the table a fifth larger. So rows from before this step read right as well.
ALTER TABLE headwater.usage_events
    ADD COLUMN IF NOT EXISTS told_usd Nullable(Decimal(38, 12)) COMMENT 'What cost_usd was before the call was first re-rated; NULL if it never was, or only before this was noted' AFTER price_source,
    ADD COLUMN IF NOT EXISTS told_price_source LowCardinality(String) COMMENT 'The same of price_source; says nothing where told_usd is NULL' AFTER told_usd,
    ADD COLUMN IF NOT EXISTS told_without_cache_usd Nullable(Decimal(38, 12)) COMMENT 'The same of without_cache_usd' AFTER told_price_source,
    ADD COLUMN IF NOT EXISTS told_reference_usd Nullable(Decimal(38, 12)) COMMENT 'The same of reference_usd' AFTER told_without_cache_usd,
    ADD COLUMN IF NOT EXISTS told_reference_price_source LowCardinality(String) COMMENT 'The same of reference_price_source' AFTER told_reference_usd;

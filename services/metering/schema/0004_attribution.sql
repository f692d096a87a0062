ALTER TABLE headwater.usage_events
    ADD COLUMN IF NOT EXISTS key_id LowCardinality(String) COMMENT 'The API key that made the request; empty if none did' AFTER feature,
    ADD COLUMN IF NOT EXISTS outcome_id String COMMENT 'The business outcome that the request works towards; empty if the caller named none' AFTER key_id,
    ADD COLUMN IF NOT EXISTS user String COMMENT 'A pseudonym of the person who asked; empty if the caller named none' AFTER outcome_id,
    ADD COLUMN IF NOT EXISTS labels Map(LowCardinality(String), String) COMMENT 'What else the caller groups costs by' AFTER user,
    ADD COLUMN IF NOT EXISTS provisional Bool COMMENT 'Stands in for a call whose process died before it told the truth; replaced should that come' AFTER estimated;

ALTER TABLE headwater.audit_runs
    ADD COLUMN IF NOT EXISTS kept_hours UInt64 COMMENT 'Of the differing hours, those whose sums it kept: their calls are gone, and the month is closed or lost most of its calls' AFTER differing_hours,
    ADD COLUMN IF NOT EXISTS forgotten_hours UInt64 COMMENT 'Hours it did not compare: their sums stay, and calls of them are gone, as they are older than 400 days or somebody explained it' AFTER kept_hours,
    MODIFY COLUMN differing_hours UInt64 COMMENT 'Hours whose sums differed with nothing on its way; it recomputed them, but for kept_hours';

ALTER TABLE headwater.audit_findings
    ADD COLUMN IF NOT EXISTS month Date COMMENT 'Of vanished calls: their UTC month, by its first day; 1970-01-01 of all else' AFTER last_sequence,
    MODIFY COLUMN kind LowCardinality(String) COMMENT 'replayed: was missing and is stored now; missing: could not be stored; lost: had left the stream; second charge: more than one row counts for the event; vanished: calls of a month are in the sums and not in usage_events any more; explained: lost or vanished, and somebody knows what it was';

ALTER TABLE headwater.audit_findings MODIFY COMMENT 'Which events audits found missing, lost or charged twice, and of which months calls vanished';

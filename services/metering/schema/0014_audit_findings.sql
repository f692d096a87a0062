ALTER TABLE headwater.audit_runs
    ADD COLUMN IF NOT EXISTS redrivable UInt64 COMMENT 'Events that had been given up for a reason that is gone, as their tenant was created since' AFTER replayed,
    ADD COLUMN IF NOT EXISTS redriven UInt64 COMMENT 'How many of the redrivable it stored' AFTER redrivable,
    ADD COLUMN IF NOT EXISTS second_charges UInt64 COMMENT 'Events that two rows count for, as they were told with different times or tenants; those found before that still stand included' AFTER lost,
    ADD COLUMN IF NOT EXISTS late Bool COMMENT 'The oldest of the waiting waited longer than was allowed' AFTER waiting,
    MODIFY COLUMN complete Bool COMMENT 'Nothing was missing, lost, charged twice or different, or all of it was mended; and nothing waited too long';

ALTER TABLE headwater.audit_findings
    MODIFY COLUMN kind LowCardinality(String) COMMENT 'replayed: was missing and is stored now; missing: could not be stored; lost: had left the stream; second charge: more than one row counts for the event; explained: lost, and somebody knows what it was';

ALTER TABLE headwater.audit_findings MODIFY COMMENT 'Which events audits found missing, lost or charged twice';

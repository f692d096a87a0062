-- From here on the first telling of an event counts; before, the last did, and versions of rows rose with the stream. An
-- old row has the lower version, so what tells its event again would replace it, at the prices of another day. The sink
-- therefore looks for old rows of calls up to this time before it stores. A constant, so that nothing is looked for later.
CREATE TABLE IF NOT EXISTS headwater.last_telling_counted
(
    through DateTime64(3, 'UTC') COMMENT 'The newest call that a release stored for which the last telling of an event counted'
)
ENGINE = ReplacingMergeTree
ORDER BY tuple()
COMMENT 'Until when the last telling of an event counted; empty if it never did. Since then the first does';
INSERT INTO headwater.last_telling_counted SELECT max(event_time) FROM headwater.usage_events HAVING count() > 0;
ALTER TABLE headwater.usage_events
    COMMENT COLUMN version 'Of rows with the same event_id the one with the highest version counts: the first that was told, unless it stands in for the truth; one that was priced anew before all';

CREATE TABLE IF NOT EXISTS headwater.audit_progress
(
    stream_created DateTime64(6, 'UTC') COMMENT 'When stream USAGE was made; one made anew counts its sequences from 1 again',
    audited_through UInt64 COMMENT 'The next audit goes on after this sequence; a full audit sets it back',
    accounted_through UInt64 COMMENT 'Every sequence up to here was looked at once: what leaves the stream afterwards is not lost',
    compared_to DateTime64(3, 'UTC') COMMENT 'Sums of all hours with rows stored up to then were compared',
    comparing_from UInt32 COMMENT 'The comparison goes on with this hour, in seconds since 1970; 0 when none is under way',
    comparing_to DateTime64(3, 'UTC') COMMENT 'What compared_to becomes when the comparison under way ends',
    full_at DateTime64(3, 'UTC') COMMENT 'When the last full audit began',
    version UInt64 COMMENT 'Of rows of the same stream the one with the highest version counts'
)
ENGINE = ReplacingMergeTree(version)
ORDER BY stream_created
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'How far the audit of completeness is. Read it with FINAL';

-- One row an audit, a few hundred a day, kept for good: this is the evidence. In the order in which it is asked for.
CREATE TABLE IF NOT EXISTS headwater.audit_runs
(
    started_at DateTime64(3, 'UTC') COMMENT 'When it began',
    finished_at DateTime64(3, 'UTC') COMMENT 'When it ended',
    full Bool COMMENT 'It began with the first event that the stream had, rather than where the last one ended',
    stream_created DateTime64(6, 'UTC') COMMENT 'When stream USAGE was made; one made anew counts its sequences from 1 again',
    first_sequence UInt64 COMMENT 'The first sequence it looked at',
    last_sequence UInt64 COMMENT 'The last sequence it looked at; one less than the first if there was nothing to look at',
    finished Bool COMMENT 'It looked at all there was; otherwise its time was up and the next one goes on',
    stored UInt64 COMMENT 'Events whose row is stored',
    duplicates UInt64 COMMENT 'Events that were told again elsewhere in the stream, and so are stored once',
    dead_lettered UInt64 COMMENT 'Events that no row could be made of, kept with their reason as dead letters',
    missing UInt64 COMMENT 'Events that were in the stream and not in the table',
    replayed UInt64 COMMENT 'How many of the missing it stored',
    lost UInt64 COMMENT 'Events that left the stream before they were stored',
    waiting UInt64 COMMENT 'Events that the sink had not taken yet',
    hours_compared UInt64 COMMENT 'Hours whose sums it compared',
    truth_usd Decimal(38, 12) COMMENT 'Sum over usage_events in those hours, in US dollars',
    rollup_usd Decimal(38, 12) COMMENT 'Sum over cost_hourly in those hours, in US dollars',
    differing_hours UInt64 COMMENT 'Hours whose sums differed with nothing on its way; it recomputed them',
    complete Bool COMMENT 'Nothing was missing, lost or different, or all of it was mended'
)
ENGINE = MergeTree
ORDER BY started_at
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'Every audit of completeness and what it found';

CREATE TABLE IF NOT EXISTS headwater.audit_findings
(
    found_at DateTime64(3, 'UTC') COMMENT 'When the audit that found it began',
    stream_created DateTime64(6, 'UTC') COMMENT 'When stream USAGE was made; one made anew counts its sequences from 1 again',
    kind LowCardinality(String) COMMENT 'replayed: was missing and is stored now; missing: could not be stored; lost: had left the stream',
    first_sequence UInt64 COMMENT 'The first of the events, which follow one another in the stream',
    last_sequence UInt64 COMMENT 'The last of them, included'
)
ENGINE = MergeTree
ORDER BY found_at
SETTINGS non_replicated_deduplication_window = 0
COMMENT 'Which events audits found missing or lost';

-- Validation rules by day, what they note of readings, and the quarantine desk.

-- The utility's changes of the built-in validation rules from a local day on (headend.rule_document). Never changed; a
-- newer document takes over from its day. Before the first, the built-in table holds alone.
create table validation_rules (
    from_day date primary key,
    document text not null,
    sha256 text not null,
    added_at timestamptz not null default clock_timestamp()
);
create trigger append_only before update or delete or truncate on validation_rules
    for each statement execute function refuse_change();
revoke update, delete on validation_rules from prepaid_app;

-- A connection that may send energy to the grid (net metering).
alter table usage_points add column may_export boolean not null default false;

-- What rules note of readings that are stored all the same: once a meter, rule and local day.
create table reading_flags (
    meter_id integer not null,
    day date not null,
    rule text not null,
    severity text not null check (severity in ('info', 'warning', 'alarm')),
    at timestamptz(3) not null,
    -- Seconds or Wh, as the rule is about times or registers.
    expected bigint not null,
    got bigint not null,
    noted_at timestamptz not null default clock_timestamp(),
    primary key (meter_id, day, rule)
);
create index reading_flags_by_time on reading_flags (noted_at desc);

-- A row is held until an engineer has released or rejected it. A released one is planned again by the owner of its shard,
-- which stores it, counts it as a duplicate, or holds it again with the reason.
alter table quarantine
    add column severity text not null default 'warning' check (severity in ('info', 'warning', 'alarm')),
    -- When the broker stored the message; null for rows of before.
    add column stored_at timestamptz,
    add column state text not null default 'held'
        check (state in ('held', 'released', 'stored', 'duplicate', 'rejected')),
    -- How many of `times` were counted as rejected, the others as quarantined.
    add column refused integer not null default 0 check (refused between 0 and times),
    -- Released as the first reading of a register that began again at 0.
    add column as_reset boolean not null default false;
-- Rows of before this migration have the severity and action of the built-in rules.
update quarantine set refused = times where reason in ('malformed', 'unknown_topic', 'unknown_meter');
update quarantine set severity = 'alarm' where reason in ('clock_absurd', 'register_fell', 'jump', 'conflict');
create index quarantine_released on quarantine (shard, serial, read_at) where state = 'released';
create index quarantine_held on quarantine (id) where state = 'held';

-- Who did what to a row of quarantine, and what its shard's owner made of it.
create table quarantine_actions (
    id bigint generated always as identity primary key,
    quarantine_id bigint not null,
    action text not null check (action in ('release', 'reject', 'stored', 'duplicate', 'held')),
    -- Null where the owner of the shard acted.
    by_whom text check (by_whom <> ''),
    why text not null check (why <> ''),
    as_reset boolean not null default false,
    at timestamptz not null default clock_timestamp(),
    check ((by_whom is not null) = (action in ('release', 'reject')))
);
create index actions_of_quarantine on quarantine_actions (quarantine_id, id);
create trigger append_only before update or delete or truncate on quarantine_actions
    for each statement execute function refuse_change();
revoke update, delete on quarantine_actions from prepaid_app;

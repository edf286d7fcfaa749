-- Counting what happened: sequence numbers of meters, completeness by day, meters not heard of, alarms of events.

-- Seconds between a meter's readings: told at its registration, or learnt from what it sends. Null: not known yet.
alter table meters add column if not exists interval_s integer check (interval_s between 1 and 86400);

-- Batches over a span; the daily sweep keeps those older than a week by hour and shard, up to `upto`.
create index batches_by_time on batches (committed_at);
create table batch_roll_up (
    one boolean primary key default true check (one),
    upto timestamptz not null
);
insert into batch_roll_up (upto) values ('epoch');

-- The sequence numbers that came with a batch, of meters that send any: a row a shard, 20 bytes a message, where a row a
-- meter changed at every message would cost as much as the readings. `quarantined` has the places (from 1) of messages
-- that were held. Kept until they are counted (headend.sequences).
create table sequence_arrivals (
    id bigint generated always as identity primary key,
    shard smallint not null,
    messages integer not null,
    meter_ids integer[] not null,
    seqs bigint[] not null,
    sent_ms bigint[] not null,
    quarantined integer[] not null,
    arrived_at timestamptz not null default clock_timestamp()
);
create index sequence_arrivals_by_shard on sequence_arrivals (shard, id);

-- What each meter has sent by its own count (headend.sequences.Track). A count that begins anew is a new epoch. `holes`
-- has what has not come, as epoch, first and last; the oldest ones beyond a bound are only counted, in `given_up`.
create table meter_sequences (
    meter_id integer primary key references meters,
    since timestamptz not null,
    heard_at timestamptz not null,
    epoch integer not null,
    began_ms bigint not null,
    last_seq bigint not null,
    last_ms bigint not null,
    came bigint not null,
    duplicate bigint not null,
    quarantined bigint not null,
    given_up bigint not null,
    missing bigint not null,
    holes bigint[] not null
) with (fillfactor = 70);
create index meters_with_holes on meter_sequences (missing desc, meter_id) where missing > 0;

-- Of each local day and area: intervals expected and stored, as it was so many hours after the day's midnight.
create table completeness (
    day date not null,
    hour smallint not null check (hour in (8, 12, 24)),
    area text not null,
    meters integer not null,
    whole integer not null,
    expected bigint not null,
    present bigint not null,
    taken_at timestamptz not null,
    primary key (day, hour, area)
);

-- Where meters stood before, of a range of meters.
create index former_places on installations (meter_id) where to_at is not null;

-- When each installed meter was last heard of, at least: looked up again only when that is long ago, so that a meter
-- that reports costs one look a day. `read_at` is its latest reading then; `silent` what the last look has found.
create table meter_contacts (
    meter_id integer primary key references meters,
    heard_at timestamptz not null default '-infinity',
    read_at timestamptz,
    silent boolean not null default false
) with (fillfactor = 80);
create index meter_contacts_by_time on meter_contacts (heard_at);
create index silent_meters on meter_contacts (meter_id) where silent;
insert into meter_contacts (meter_id) select distinct meter_id from installations;
create function know_contact() returns trigger language plpgsql as $$
begin
    insert into meter_contacts (meter_id) select distinct meter_id from added on conflict do nothing;
    return null;
end $$;
create trigger knows_contact after insert on installations referencing new table as added
    for each statement execute function know_contact();

-- What meters say with every reading for as long as it lasts: one event of it, not one a reading.
create table standing_flags (
    meter_id integer not null references meters,
    code integer not null,
    since timestamptz(3) not null,
    last_at timestamptz(3) not null,
    primary key (meter_id, code)
) with (fillfactor = 70);
create index standing_flags_by_last on standing_flags (last_at);

-- Events that an operator has to see, of one meter or of an area: the same again is one alarm with a count.
create table event_alarms (
    id bigint generated always as identity primary key,
    -- Null: of the whole area, for so many `meters`.
    meter_id integer references meters,
    area text not null,
    meters integer not null default 1 check (meters > 0),
    code integer not null,
    severity text not null check (severity in ('warning', 'alarm')),
    times integer not null default 1 check (times > 0),
    first_at timestamptz(3) not null,
    last_at timestamptz(3) not null,
    raised_at timestamptz not null default clock_timestamp(),
    ended_at timestamptz(3),
    acknowledged_by text check (acknowledged_by <> ''),
    acknowledged_at timestamptz,
    note text check (note <> ''),
    check (first_at <= last_at),
    check (num_nulls(acknowledged_by, acknowledged_at) in (0, 2)),
    check (acknowledged_by is not null or note is null)
) with (fillfactor = 80);
create unique index one_open_event_alarm on event_alarms (meter_id, code) where ended_at is null;
create unique index one_open_area_alarm on event_alarms (area, code) where ended_at is null and meter_id is null;
create index event_alarms_of_meter on event_alarms (meter_id, code, id);
create index event_alarms_open on event_alarms (severity, id) where ended_at is null;

-- Events as an engineer looks for them: the latest of all, or of a code.
create index meter_events_by_time on meter_events (received_at, meter_id);

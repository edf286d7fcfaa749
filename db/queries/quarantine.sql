-- validation_rules_on: the validation rules in force on a day
select document from validation_rules where from_day <= %(day)s order by from_day desc limit 1

-- validation_rules_at: the validation rules that begin on a day
select sha256 from validation_rules where from_day = %(from_day)s

-- add_validation_rules: the utility's validation rules from a day on; a day that has a document keeps it
insert into validation_rules (from_day, document, sha256) values (%(from_day)s, %(document)s, %(sha256)s)
on conflict (from_day) do nothing

-- add_reading_flags: what rules note of readings, once a meter, local day and rule
insert into reading_flags (meter_id, day, rule, severity, at, expected, got)
select * from unnest(%(meter_ids)s::integer[], %(days)s::date[], %(rules)s::text[], %(severities)s::text[],
                     %(ats)s::timestamptz[], %(expecteds)s::bigint[], %(gots)s::bigint[])
on conflict do nothing

-- reading_flags_noted: what rules noted, newest first, from a place on
select m.serial, f.rule, f.severity, f.day, f.at, f.expected, f.got, f.noted_at
from reading_flags f join meters m on m.id = f.meter_id
where (%(rule)s::text is null or f.rule = %(rule)s) and (%(serial)s::text is null or m.serial = %(serial)s)
  and (%(since)s::timestamptz is null or f.noted_at >= %(since)s)
order by f.noted_at desc, f.meter_id, f.day, f.rule limit %(most)s offset %(skip)s

-- take_released: released rows of some shards in the order in which their readings are to be planned, with the bytes of
-- their frame, which one of its rows keeps
select q.id, q.shard, q.topic, q.read_at, q.item, q.reason, q.as_reset, coalesce(q.stored_at, q.first_at) as stored_at,
       case when length(q.raw) > 0 then q.raw
            else coalesce((select r.raw from quarantine r
                           where r.sha256 = q.sha256 and length(r.raw) > 0 order by r.item limit 1), ''::bytea)
       end as raw
from quarantine q
where q.state = 'released' and q.shard = any(%(shards)s)
order by q.shard, q.serial, q.read_at, q.id limit %(most)s

-- settle_released: what became of released rows; one that is held again says why now
with settled as (
    update quarantine q set state = s.outcome,
        times = q.times + (s.outcome = 'held')::integer, refused = q.refused + s.rejected::integer,
        last_at = case when s.outcome = 'held' then now() else q.last_at end,
        reason = coalesce(s.reason, q.reason), detail = coalesce(s.detail, q.detail),
        serial = coalesce(s.serial, q.serial), read_at = coalesce(s.read_at, q.read_at)
    from unnest(%(ids)s::bigint[], %(outcomes)s::text[], %(reasons)s::text[], %(details)s::text[], %(serials)s::text[],
                %(read_ats)s::timestamptz[], %(rejecteds)s::boolean[])
        as s(id, outcome, reason, detail, serial, read_at, rejected)
    where q.id = s.id and q.state = 'released'
    returning q.id, s.outcome, coalesce(s.detail, s.outcome) as why
)
insert into quarantine_actions (quarantine_id, action, why) select id, outcome, why from settled order by id

-- quarantine_rows: rows by state, reason, serial and time, newest first, from an id on
select id, state, reason, severity, serial, topic, read_at, item, detail, times, first_at, last_at, shard, as_reset
from quarantine
where (%(state)s::text is null or state = %(state)s) and (%(reason)s::text is null or reason = %(reason)s)
  and (%(serial)s::text is null or serial = %(serial)s) and (%(since)s::timestamptz is null or last_at >= %(since)s)
  and (%(before)s::bigint is null or id < %(before)s)
order by id desc limit %(most)s

-- quarantine_totals: how many rows stand in each state, by reason
select state, reason, count(*) as rows, sum(times)::bigint as times from quarantine group by state, reason order by 1, 2

-- quarantine_row: one row with the bytes of its frame
select q.id, q.state, q.reason, q.severity, q.serial, q.topic, q.read_at, q.item, q.detail, q.times, q.first_at, q.last_at,
       q.shard, q.as_reset
from quarantine q where q.id = %(id)s

-- quarantine_raw: the bytes of a row's frame, which one of its rows keeps
select r.raw from quarantine q join quarantine r on r.sha256 = q.sha256
where q.id = %(id)s order by length(r.raw) > 0 desc, r.item limit 1

-- quarantine_actions_of: who did what to a row, in order
select action, by_whom, why, as_reset, at from quarantine_actions where quarantine_id = %(id)s order by id

-- lock_quarantine: rows that somebody decides on, each by one person at a time
select id, state, reason, shard from quarantine where id = any(%(ids)s) order by id for no key update

-- close_quarantine: rows are released to the owners of their shards, or rejected
update quarantine set state = %(state)s, as_reset = %(as_reset)s where id = any(%(ids)s)

-- add_quarantine_actions: who decided on rows, what and why
insert into quarantine_actions (quarantine_id, action, by_whom, why, as_reset)
select id, %(action)s, %(by)s, %(why)s, %(as_reset)s from unnest(%(ids)s::bigint[]) as r(id) order by id

-- permit_export: a connection may send energy to the grid, or not any more; nothing where it is so already
with changed as (
    update usage_points set may_export = %(may_export)s
    where id = (select usage_point_id from accounts where id = %(account_id)s) and may_export <> %(may_export)s
    returning id
)
update accounts a set version = a.version + 1 from changed c where a.usage_point_id = c.id
returning a.shard, a.version

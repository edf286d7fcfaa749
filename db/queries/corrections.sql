-- add_correction: somebody asks for a correction
insert into corrections (kind, reason, scope, asked_by, reverses)
values (%(kind)s, %(reason)s, %(scope)s, %(asked_by)s, %(reverses)s)
returning id

-- correction: one correction
select id, kind, reason, scope, asked_by, asked_at, state, approved_by, approved_at, approved_cut_offs, cut_offs,
       ended_by, ended_at, reverses
from corrections where id = %(id)s

-- lock_correction: one correction, that nobody else changes its state meanwhile
select id from corrections where id = %(id)s for update

-- correction_is: whether a correction is still in a state; until the end of the transaction it stays so
select id from corrections where id = %(id)s and state = %(state)s for share

-- corrections_listed: the latest corrections first, each with what became of its accounts
select c.id, c.kind, c.reason, c.state, c.asked_by, c.asked_at, c.approved_by, c.reverses,
       s.computed, s.applied, s.refused, s.difference_minor
from corrections c
cross join lateral (
    select count(*) filter (where a.state = 'computed') as computed, count(*) filter (where a.state = 'applied') as applied,
           count(*) filter (where a.state = 'refused') as refused,
           coalesce(sum(a.difference_minor), 0)::bigint as difference_minor
    from correction_accounts a where a.correction_id = c.id
) s
order by c.id desc limit %(most)s

-- correction_summary: accounts of a correction by state, what they would cross, and what they would pay or get
select count(*) filter (where state = 'computed') as computed, count(*) filter (where state = 'applied') as applied,
       count(*) filter (where state = 'refused') as refused,
       count(*) filter (where state = 'computed' and crosses = 'low') as to_warn,
       count(*) filter (where state = 'computed' and crosses = 'exhausted') as to_cut,
       count(*) filter (where state = 'computed' and crosses = 'restored') as to_restore,
       count(*) filter (where state <> 'refused' and difference_minor < 0) as debited,
       coalesce(sum(difference_minor) filter (where difference_minor < 0), 0)::bigint as debited_minor,
       count(*) filter (where state <> 'refused' and difference_minor > 0) as credited,
       coalesce(sum(difference_minor) filter (where difference_minor > 0), 0)::bigint as credited_minor
from correction_accounts where correction_id = %(id)s

-- correction_rows: accounts of a correction in id order from one id on, those that cross a level first if asked
select a.number, c.account_id, c.state, c.before_minor, c.after_minor, c.difference_minor, c.lines, c.crosses, c.detail
from correction_accounts c join accounts a on a.id = c.account_id
where c.correction_id = %(id)s and c.account_id > %(after)s
  and (%(number)s::text is null or a.number = %(number)s)
  and (not %(crossing)s or c.crosses in ('low', 'exhausted', 'restored'))
order by c.account_id limit %(most)s

-- correction_begins: the dry run begins, or begins again; an approval of an earlier one is void
update corrections set state = 'proposed', approved_by = null, approved_at = null, approved_cut_offs = null
where id = %(id)s and state in ('proposed', 'computed', 'approved')
returning id

-- correction_computed: the dry run is complete
update corrections set state = 'computed', computed_at = clock_timestamp() where id = %(id)s and state = 'proposed'
returning id

-- correction_approved: a second person approves, with the number of cut-offs that the dry run reports
update corrections set state = 'approved', approved_by = %(by)s, approved_at = clock_timestamp(),
    approved_cut_offs = %(cut_offs)s
where id = %(id)s

-- correction_applying: applying begins, or goes on
update corrections set state = 'applying' where id = %(id)s and state in ('approved', 'applying')
returning id

-- correction_stopped: more supplies would be cut than was approved: to be looked at again
update corrections set state = 'computed', approved_by = null, approved_at = null, approved_cut_offs = null
where id = %(id)s and state = 'applying'

-- correction_advanced: a range is applied, if its cut-offs are within what was approved
update corrections set cut_offs = cut_offs + %(cut_offs)s
where id = %(id)s and state = 'applying' and cut_offs + %(cut_offs)s <= approved_cut_offs
returning id

-- correction_applied: nothing is left to apply
update corrections set state = 'applied', ended_at = clock_timestamp()
where id = %(id)s and state = 'applying'
  and not exists (select 1 from correction_accounts a where a.correction_id = %(id)s and a.state = 'computed')

-- correction_cancelled: what is not applied yet stays as it is
update corrections set state = 'cancelled', ended_by = %(by)s, ended_at = clock_timestamp() where id = %(id)s

-- accounts_to_correct: accounts in a correction's scope that have no dry run at their version, from one id on
select a.id, a.number, a.version
from accounts a
where a.id > %(after)s
  and (%(numbers)s::text[] is null or a.number = any(%(numbers)s))
  and (%(reverses)s::bigint is null or exists (
      select 1 from correction_accounts r
      where r.correction_id = %(reverses)s and r.account_id = a.id and r.state = 'applied'))
  and (%(area)s::text is null or exists (
      select 1 from usage_points u where u.id = a.usage_point_id and u.area = %(area)s))
  and (%(category)s::text is null and %(tariff_id)s::text is null or exists (
      select 1 from assignments x
      where x.account_id = a.id and x.replaced_by is null
        and x.category = coalesce(%(category)s, x.category) and x.tariff_id = coalesce(%(tariff_id)s, x.tariff_id)))
  and not exists (
      select 1 from correction_accounts c
      where c.correction_id = %(id)s and c.account_id = a.id and (c.state = 'applied' or c.version = a.version))
order by a.id limit %(most)s

-- count_to_correct: how many accounts there are at the most, for the progress shown
select case when %(numbers)s::text[] is null
            then (select count(*) from accounts) else cardinality(%(numbers)s::text[]) end

-- put_dry_runs: keep what the dry run found, in the place of an earlier one
insert into correction_accounts (correction_id, account_id, state, version, before_minor, after_minor, difference_minor,
                                 lines, crosses, detail)
select %(id)s, k.account_id, case when k.crosses is null then 'refused' else 'computed' end, k.version, k.before_minor,
       k.after_minor, k.after_minor - k.before_minor, k.lines, k.crosses, k.detail
from unnest(%(account_ids)s::bigint[], %(versions)s::bigint[], %(befores)s::bigint[], %(afters)s::bigint[],
            %(lines)s::jsonb[], %(crosses)s::text[], %(details)s::text[])
     as k(account_id, version, before_minor, after_minor, lines, crosses, detail)
on conflict (correction_id, account_id) do update
    set state = excluded.state, version = excluded.version, before_minor = excluded.before_minor,
        after_minor = excluded.after_minor, difference_minor = excluded.difference_minor, lines = excluded.lines,
        crosses = excluded.crosses, detail = excluded.detail, computed_at = clock_timestamp()
    where correction_accounts.state <> 'applied'

-- drop_dry_runs: accounts that a correction no longer changes
delete from correction_accounts
where correction_id = %(id)s and account_id = any(%(account_ids)s) and state <> 'applied'

-- accounts_to_apply: the next accounts to apply a correction to, from one id on
select account_id from correction_accounts
where correction_id = %(id)s and state = 'computed' and account_id > %(after)s order by account_id limit %(most)s

-- accounts_still_to_apply: those of some accounts, locked by now, that a correction is still to be applied to
select account_id from correction_accounts
where correction_id = %(id)s and state = 'computed' and account_id = any(%(ids)s) order by account_id

-- mark_applied: what applying a correction did to some accounts
update correction_accounts c
set state = case when k.crosses is null then 'refused' else 'applied' end, version = k.version,
    before_minor = k.before_minor, after_minor = k.after_minor, difference_minor = k.after_minor - k.before_minor,
    lines = k.lines, crosses = k.crosses, detail = k.detail,
    applied_at = case when k.crosses is null then null else clock_timestamp() end
from unnest(%(account_ids)s::bigint[], %(versions)s::bigint[], %(befores)s::bigint[], %(afters)s::bigint[],
            %(lines)s::jsonb[], %(crosses)s::text[], %(details)s::text[])
     as k(account_id, version, before_minor, after_minor, lines, crosses, detail)
where c.correction_id = %(id)s and c.account_id = k.account_id and c.state = 'computed'

-- booked_since: what journals have booked for some accounts by bill part, each from a day on
with booked as (
    select j.account_id, j.period, j.energy_wh, j.assessed_wh, j.lines
    from unnest(%(ids)s::bigint[], %(since)s::date[]) k(id, since)
    join journals j on j.account_id = k.id and j.period >= k.since
), sums as (
    select account_id, period, sum(energy_wh)::bigint as energy_wh, sum(assessed_wh)::bigint as assessed_wh
    from booked group by account_id, period
), by_line as (
    select account_id, period, jsonb_object_agg(line, amount_minor) as lines
    from (select b.account_id, b.period, e.key as line, sum(e.value::bigint)::bigint as amount_minor
          from booked b cross join lateral jsonb_each_text(b.lines) e group by 1, 2, 3) x
    group by account_id, period
)
select s.account_id, s.period, s.energy_wh,
       coalesce((select d.demand_w from demand_of_parts d where d.account_id = s.account_id and d.period = s.period), 0),
       s.assessed_wh, coalesce(l.lines, '{}')
from sums s left join by_line l using (account_id, period)
order by s.account_id, s.period

-- points_of_many: the readings and estimates next to given instants of many meters, on both sides, up to each one's
-- latest reading
select distinct k.account_id, n.read_at, n.import_wh
from unnest(%(account_ids)s::bigint[], %(meter_ids)s::integer[], %(edges)s::timestamptz[], %(latest)s::timestamptz[])
     as k(account_id, meter_id, edge, latest)
cross join lateral (
    (select r.read_at, r.import_wh from effective_readings r
     where r.meter_id = k.meter_id and r.read_at < k.edge and r.read_at <= k.latest order by r.read_at desc limit 1)
    union all
    (select r.read_at, r.import_wh from effective_readings r
     where r.meter_id = k.meter_id and r.read_at >= k.edge and r.read_at <= k.latest order by r.read_at limit 1)
) n
union
select k.account_id, e.read_at, e.import_wh
from (
    select distinct x.account_id, x.meter_id, x.latest
    from unnest(%(account_ids)s::bigint[], %(meter_ids)s::integer[], %(latest)s::timestamptz[])
         as x(account_id, meter_id, latest)
) k
cross join lateral estimates_held(k.meter_id) e
where e.read_at <= k.latest
order by 1, 2

-- assignments_of_many: what some accounts are charged by, with the ids of the rows
select x.account_id, x.id, x.from_day, x.correction_id, f.sha256, x.category, x.load_w, x.area_type, x.meter_rent
from assignments x join tariffs f on f.id = x.tariff_id
where x.account_id = any(%(ids)s) and x.replaced_by is null
order by x.account_id, x.from_day

-- assignments_before: rows of some accounts that a correction's own rows stand in the place of
select o.account_id, o.from_day, f.sha256, o.category, o.load_w, o.area_type, o.meter_rent
from assignments n
join assignments o on o.replaced_by = n.id and o.from_day = n.from_day
join tariffs f on f.id = o.tariff_id
where n.correction_id = %(id)s and n.account_id = any(%(ids)s)

-- count_assignments_by: how many rows a correction wrote for some accounts, and how many of them still hold
select account_id, count(*), count(*) filter (where replaced_by is null)
from assignments where correction_id = %(id)s and account_id = any(%(ids)s) group by account_id

-- retire_assignments: rows that others are put in the place of in this transaction; they are named right after
update assignments set replaced_by = id where id = any(%(ids)s)

-- add_assignments: what accounts are charged by under a correction
insert into assignments (account_id, from_day, tariff_id, category, load_w, area_type, meter_rent, correction_id)
select k.account_id, k.from_day, k.tariff_id, k.category, k.load_w, k.area_type, k.meter_rent, %(correction_id)s
from unnest(%(account_ids)s::bigint[], %(from_days)s::date[], %(tariff_ids)s::text[], %(categories)s::text[],
            %(loads_w)s::integer[], %(area_types)s::text[], %(meter_rents)s::boolean[])
     as k(account_id, from_day, tariff_id, category, load_w, area_type, meter_rent)

-- name_replacements: a row that was retired names the one that holds on its day now
update assignments o set replaced_by = (
    select n.id from assignments n
    where n.account_id = o.account_id and n.replaced_by is null and n.from_day <= o.from_day
    order by n.from_day desc limit 1)
where o.id = any(%(ids)s)

-- meters_by_serial: meters by serial, with the account that each bills
select m.serial, m.id, a.number
from meters m
join installations i on i.meter_id = m.id and i.role = 'billing' and i.to_at is null
join accounts a on a.usage_point_id = i.usage_point_id
where m.serial = any(%(serials)s)

-- readings_at: those of some readings that are stored
select r.meter_id, r.read_at
from unnest(%(meter_ids)s::integer[], %(ats)s::timestamptz[]) k(meter_id, at)
join readings r on r.meter_id = k.meter_id and r.read_at = k.at

-- edits_by: what a correction edited of some meters, whether that still holds, and what held before it
select e.meter_id, e.read_at, e.replaced_by is null as holds, b.id is not null as edited_before, b.import_wh as before_wh,
       r.import_wh as received_wh
from reading_edits e
join readings r on r.meter_id = e.meter_id and r.read_at = e.read_at
left join reading_edits b on b.replaced_by = e.id
where e.correction_id = %(id)s and e.meter_id = any(%(meter_ids)s)

-- retire_edits: edits that others are put in the place of in this transaction; they are named right after
update reading_edits e set replaced_by = e.id
from unnest(%(meter_ids)s::integer[], %(ats)s::timestamptz[]) k(meter_id, at)
where e.meter_id = k.meter_id and e.read_at = k.at and e.replaced_by is null
returning e.id

-- add_edits: registers that stand in the place of what was read
insert into reading_edits (meter_id, read_at, import_wh, correction_id)
select k.meter_id, k.at, k.import_wh, %(correction_id)s
from unnest(%(meter_ids)s::integer[], %(ats)s::timestamptz[], %(import_whs)s::bigint[]) as k(meter_id, at, import_wh)

-- name_edits: an edit that was retired names the one that holds now
update reading_edits o set replaced_by = n.id
from reading_edits n
where o.id = any(%(ids)s) and n.meter_id = o.meter_id and n.read_at = o.read_at and n.replaced_by is null

-- assessed_by: what a correction has assessed for some accounts, by bill part
select account_id, period, sum(assessed_wh)::bigint from journals
where correction_id = %(id)s and account_id = any(%(ids)s) and kind = 'overhaul'
group by account_id, period having sum(assessed_wh) <> 0

-- one_snapshot: a transaction that sees one moment
set transaction isolation level repeatable read

-- estimates_by: what a correction estimated of a meter and nobody has taken back
select read_at, rule, inputs, from_at, from_wh, to_at, to_wh from estimated_readings
where correction_id = %(id)s and meter_id = %(meter_id)s and withdrawn_by is null order by read_at

-- withdraw_estimates: estimates of some instants are taken back by a correction
update estimated_readings e set withdrawn_by = %(correction_id)s
from unnest(%(meter_ids)s::integer[], %(ats)s::timestamptz[]) k(meter_id, at)
where e.meter_id = k.meter_id and e.read_at = k.at and e.withdrawn_by is null

-- add_estimates: registers that stand where nothing was read
insert into estimated_readings (meter_id, read_at, import_wh, rule, inputs, from_at, from_wh, to_at, to_wh, correction_id)
select k.meter_id, k.at, k.import_wh, k.rule, k.inputs, k.from_at, k.from_wh, k.to_at, k.to_wh, %(correction_id)s
from unnest(%(meter_ids)s::integer[], %(ats)s::timestamptz[], %(import_whs)s::bigint[], %(rules)s::text[],
            %(inputs)s::jsonb[], %(from_ats)s::timestamptz[], %(from_whs)s::bigint[], %(to_ats)s::timestamptz[],
            %(to_whs)s::bigint[])
     as k(meter_id, at, import_wh, rule, inputs, from_at, from_wh, to_at, to_wh)

-- count_held_estimates: how many of a correction's estimates hold
select count(*) from held_estimates where correction_id = %(id)s

-- exceptions_open: open exceptions by what is asked, the oldest first, from a place on
select o.kind, o.item_id, o.severity, o.rule, o.serial, o.at, o.to_at, o.since, o.detail, coalesce(u.area, '') as area,
       a.number as account, w.assigned_to, d.id as decision
from open_exceptions o
left join exception_work w on w.kind = o.kind and w.item_id = o.item_id
left join exception_decisions d on d.kind = o.kind and d.item_id = o.item_id and d.state = 'proposed'
left join meters m on m.serial = o.serial
left join installations i on i.meter_id = m.id and i.role = 'billing' and i.to_at is null
left join usage_points u on u.id = i.usage_point_id
left join accounts a on a.usage_point_id = i.usage_point_id
where (%(kind)s::text is null or o.kind = %(kind)s) and (%(severity)s::text is null or o.severity = %(severity)s)
  and (%(rule)s::text is null or o.rule = %(rule)s) and (%(serial)s::text is null or o.serial = %(serial)s)
  and (%(area)s::text is null or u.area = %(area)s)
  and (%(assigned_to)s::text is null or coalesce(w.assigned_to, '') = %(assigned_to)s)
  and (%(before)s::timestamptz is null or o.since <= %(before)s)
  and (%(after_since)s::timestamptz is null
       or (o.since, o.kind, o.item_id) > (%(after_since)s, %(after_kind)s::text, %(after_id)s::bigint))
order by o.since, o.kind, o.item_id limit %(most)s

-- exceptions_counted: open exceptions by kind, severity and age: up to a day, a week, 30 days, older
select kind, severity, count(*) filter (where age <= interval '1 day') as day,
       count(*) filter (where age > interval '1 day' and age <= interval '7 days') as week,
       count(*) filter (where age > interval '7 days' and age <= interval '30 days') as month,
       count(*) filter (where age > interval '30 days') as older, min(since) as oldest
from (select o.*, %(now)s - o.since as age from open_exceptions o) x
group by kind, severity order by kind, severity

-- exception_item: one exception, open or not, with its meter and account
select x.*, m.id as meter_id, m.interval_s, m.make, m.model, coalesce(u.area, '') as area, a.number as account,
       a.id as account_id, c.category, w.assigned_to, w.closed_as, w.closed_at
from (
    select 'quarantine' as kind, q.id as item_id, q.severity, q.reason as rule, q.serial, q.read_at as at,
           null::timestamptz as to_at, q.first_at as since, q.detail, q.state
    from quarantine q where %(kind)s = 'quarantine' and q.id = %(id)s
    union all
    select 'flag', f.id, f.severity, f.rule, m.serial, f.at, null, f.noted_at,
           'expected ' || f.expected || ', got ' || f.got, 'noted'
    from reading_flags f join meters m on m.id = f.meter_id where %(kind)s = 'flag' and f.id = %(id)s
    union all
    select 'gap', g.id, case g.state when 'given_up' then 'warning' else 'info' end, 'gap', m.serial, g.from_at, g.to_at,
           g.noted_at, g.missing || ' intervals missing', g.state
    from gaps g join meters m on m.id = g.meter_id where %(kind)s = 'gap' and g.id = %(id)s
) x
left join exception_work w on w.kind = x.kind and w.item_id = x.item_id
left join meters m on m.serial = x.serial
left join installations i on i.meter_id = m.id and i.role = 'billing' and i.to_at is null
left join usage_points u on u.id = i.usage_point_id
left join accounts a on a.usage_point_id = i.usage_point_id
left join lateral (
    select y.category from assignments y where y.account_id = a.id and y.replaced_by is null
    order by y.from_day desc limit 1
) c on true

-- exception_neighbours: readings around an instant, as read and as they hold, some on each side
select r.read_at, r.import_wh as received_wh, e.import_wh as edited_wh, e.id is not null as edited, e.correction_id
from (
    (select * from readings b where b.meter_id = %(meter_id)s and b.read_at < %(from_at)s
     order by b.read_at desc limit %(most)s)
    union all
    (select * from readings c where c.meter_id = %(meter_id)s and c.read_at >= %(from_at)s and c.read_at <= %(to_at)s
     order by c.read_at limit %(most)s)
    union all
    (select * from readings d where d.meter_id = %(meter_id)s and d.read_at > %(to_at)s
     order by d.read_at limit %(most)s)
) r
left join reading_edits e on e.meter_id = r.meter_id and e.read_at = r.read_at and e.replaced_by is null
order by r.read_at

-- exception_places: where a meter stands and stood
select i.role, i.from_at, i.to_at, u.code as usage_point, a.number as account
from installations i join usage_points u on u.id = i.usage_point_id left join accounts a on a.usage_point_id = u.id
where i.meter_id = %(meter_id)s order by i.from_at desc limit %(most)s

-- exception_segments: where a meter's register began anew
select from_at, register_wh, start_wh, reason from register_segments
where meter_id = %(meter_id)s order by from_at desc limit %(most)s

-- exception_swaps: swaps that a meter was part of
select s.at, o.serial as old, n.serial as new, s.closing_wh, s.opening_wh, s.reason, s.swapped_by
from meter_swaps s join meters o on o.id = s.old_meter_id join meters n on n.id = s.new_meter_id
where %(meter_id)s in (s.old_meter_id, s.new_meter_id) order by s.at desc limit %(most)s

-- exception_events: events of a meter around an instant
select at, code from meter_events
where meter_id = %(meter_id)s and at between %(from_at)s - interval '7 days' and %(to_at)s + interval '7 days'
order by at desc limit %(most)s

-- exception_orders: what a meter's relay was told, the latest first, and what it says now
select o.relay, o.state, o.cause, o.created_at, s.relay as reported, s.relay_at as reported_at
from meter_state s left join supply_orders o on o.meter_id = s.meter_id and o.kind = 'supply'
where s.meter_id = %(meter_id)s order by o.id desc nulls last limit %(most)s

-- exception_curves: readings of a meter as they hold in some windows of time, each with its number
select k.n, r.read_at, r.import_wh
from unnest(%(ns)s::integer[], %(froms)s::timestamptz[], %(tos)s::timestamptz[]) as k(n, from_at, to_at)
cross join lateral (
    (select b.read_at, b.import_wh from effective_readings b
     where b.meter_id = %(meter_id)s and b.read_at <= k.from_at order by b.read_at desc limit 1)
    union all
    (select b.read_at, b.import_wh from effective_readings b
     where b.meter_id = %(meter_id)s and b.read_at > k.from_at and b.read_at < k.to_at order by b.read_at)
    union all
    (select b.read_at, b.import_wh from effective_readings b
     where b.meter_id = %(meter_id)s and b.read_at >= k.to_at order by b.read_at limit 1)
) r
order by k.n, r.read_at

-- exception_trail_of: who did what to an exception, in order
select step, by_whom, why, facts, at from exception_trail where kind = %(kind)s and item_id = %(id)s order by id

-- exception_decisions_of: what was decided on an exception, in order
select id, action, parameters, effect, correction_id, asked_by, why, asked_at, state, ended_by, ended_why, ended_at
from exception_decisions where kind = %(kind)s and item_id = %(id)s order by id

-- lock_exception: somebody works on an exception; nobody else does until the end of the transaction
with kept as (
    insert into exception_work (kind, item_id) values (%(kind)s, %(id)s)
    on conflict (kind, item_id) do update set kind = excluded.kind returning closed_at
)
select closed_at from kept

-- assign_exception: who is to work on an exception
update exception_work set assigned_to = %(to)s where kind = %(kind)s and item_id = %(id)s

-- close_exception: an exception is closed as what was decided
update exception_work set closed_as = %(closed_as)s, closed_at = clock_timestamp()
where kind = %(kind)s and item_id = %(id)s

-- add_exception_step: one step of an exception's trail
insert into exception_trail (kind, item_id, step, by_whom, why, facts)
values (%(kind)s, %(id)s, %(step)s, %(by)s, %(why)s, %(facts)s)

-- add_exception_decision: what somebody decides on an exception
insert into exception_decisions (kind, item_id, action, parameters, effect, correction_id, asked_by, why, asked_at, state,
                                 ended_by, ended_why, ended_at)
values (%(kind)s, %(id)s, %(action)s, %(parameters)s, %(effect)s, %(correction_id)s, %(by)s, %(why)s, clock_timestamp(),
        %(state)s, case when %(state)s = 'done' then %(by)s end, case when %(state)s = 'done' then %(why)s end,
        case when %(state)s = 'done' then clock_timestamp() end)
returning id

-- end_exception_decision: a decision that was proposed is carried out or cancelled
update exception_decisions set state = %(state)s, ended_by = %(by)s, ended_why = %(why)s, ended_at = clock_timestamp()
where id = %(id)s and state = 'proposed'

-- estimation_rules_on: the utility's document of estimation in force on a day
select document from estimation_rules where from_day <= %(day)s order by from_day desc limit 1

-- add_estimation_rules: the utility's document of estimation from a day on; a day that has one keeps it
insert into estimation_rules (from_day, document, sha256, added_by)
values (%(from_day)s, %(document)s, %(sha256)s, %(by)s)
on conflict (from_day) do nothing

-- estimation_rules_at: the document of estimation that begins on a day
select sha256 from estimation_rules where from_day = %(from_day)s

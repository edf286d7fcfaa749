-- lock_accounts: wait for accounts in id order, so that two lockers never meet head on
select id from accounts where id = any(%(ids)s) order by id for no key update

-- lock_free_accounts: lock those accounts that nobody else holds; never wait
select id from accounts where id = any(%(ids)s) order by id for no key update skip locked

-- look_since: nothing before the oldest anchor matters; anchors only move forward, so this may be a little old
select min(anchor_at) from accounts where id = any(%(ids)s)

-- look: accounts, their terms and meter, and the points of the energy curve that money needs, all of one snapshot
select a.id, a.number, a.shard, a.mode, a.opened_on, a.emergency_credit_minor, a.threshold_minor, a.absent_until,
       a.exempt_reason is not null as exempt, a.exhausted_at, h.hold, h.today, h.supply_rules, k.thresholds, k.by_recharge,
       m.can_limit,
       a.posted_minor, a.charged_minor, a.through, a.before_wh, a.part_start_wh, a.closed_wh, a.closed_zones, a.demand_w,
       a.anchor_at, a.anchor_wh, a.anchor_zones,
       a.low_arm, a.low_raised, a.exhausted_arm, a.exhausted_raised, a.desired, a.version,
       t.from_days, t.tariffs, t.categories, t.loads_w, t.area_types, t.meter_rents, t.asks_demand,
       m.id as meter_id, m.serial, m.make, m.model, m.rated_w, m.register_end_wh, i.from_at as installed_at,
       s.relay, s.relay_at, u.area, u.may_export,
       g.segments, p.ats, p.registers, l.read_at as mark_at, l.import_wh as mark_register_wh,
       o.id as open_order_id, o.relay as open_order_relay, o.state as open_order_state,
       (select jsonb_agg(jsonb_build_array(f.meter_id, (extract(epoch from f.from_at) * 1000)::bigint,
                   (extract(epoch from f.to_at) * 1000)::bigint,
                   (select jsonb_agg(jsonb_build_array((extract(epoch from r.from_at) * 1000)::bigint, r.register_wh,
                                                       r.start_wh) order by r.from_at)
                    from register_segments r where r.meter_id = f.meter_id)) order by f.from_at)
        from installations f
        where f.usage_point_id = a.usage_point_id and f.role = 'billing' and f.to_at is not null) as formers
from accounts a
join usage_points u on u.id = a.usage_point_id
join installations i on i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null
join meters m on m.id = i.meter_id
join meter_state s on s.meter_id = m.id
left join supply_orders o on o.meter_id = m.id and o.kind = 'supply' and o.state in ('pending', 'held', 'sent')
cross join lateral (
    select array_agg(x.from_day order by x.from_day) as from_days, array_agg(f.sha256 order by x.from_day) as tariffs,
           array_agg(x.category order by x.from_day) as categories, array_agg(x.load_w order by x.from_day) as loads_w,
           array_agg(x.area_type order by x.from_day) as area_types,
           array_agg(x.meter_rent order by x.from_day) as meter_rents,
           jsonb_agg(f.edges) filter (where f.edges is not null) as edges, bool_or(f.asks_demand) as asks_demand
    from assignments x join tariffs f on f.id = x.tariff_id
    where x.account_id = a.id and x.replaced_by is null
) t
cross join lateral (
    select jsonb_agg(jsonb_build_array(
               (extract(epoch from r.from_at) * 1000)::bigint, r.register_wh, r.start_wh) order by r.from_at) as segments
    from register_segments r where r.meter_id = m.id
) g
cross join lateral (
    select exists (select from supply_holds s
                   where s.account_id = a.id and s.approved_at is not null and s.released_at is null
                     and (s.until_at is null or s.until_at > clock_timestamp())) as hold,
           t.today,
           (select r.sha256 from supply_rules r where r.from_day <= t.today order by r.from_day desc limit 1) as supply_rules
    from (select (clock_timestamp() at time zone %(zone)s)::date as today) t
) h
left join lateral (
    select jsonb_agg(jsonb_build_array(w.n, w.level_minor, w.arm, w.raised) order by w.n)
               filter (where w.level_minor is not null) as thresholds,
           coalesce(bool_or(w.kind = 'percent'), false) as by_recharge
    from alarm_thresholds w where w.account_id = a.id
) k on true
left join lateral (
    select r.read_at, r.import_wh from effective_readings r
    where r.meter_id = m.id and r.read_at >= %(since)s and r.read_at >= a.anchor_at order by r.read_at desc limit 1
) l on true
left join lateral (
    select array_agg(q.read_at order by q.read_at) as ats, array_agg(q.import_wh order by q.read_at) as registers
    from (
        select l.read_at, l.import_wh where l.read_at is not null
        union
        select n.read_at, n.import_wh
        from (
            select generate_series(date_trunc(%(step)s, a.through::timestamp) + ('1 ' || %(step)s)::interval,
                                   l.read_at at time zone %(zone)s, ('1 ' || %(step)s)::interval)
            union all
            select d.day::timestamp from unnest(t.from_days) as d(day) where d.day > a.through
            union all
            select d.day::timestamp
            from jsonb_array_elements(t.edges) x, jsonb_array_elements_text(x -> 'days') as d(day)
            where d.day::date > a.through and d.day::date <= l.read_at at time zone %(zone)s
            union all
            select y.day + k.minute::integer * interval '1 minute'
            from jsonb_array_elements(t.edges) x, jsonb_array_elements_text(x -> 'minutes') as k(minute),
                 generate_series(date_trunc('day', a.anchor_at at time zone %(zone)s),
                                 l.read_at at time zone %(zone)s, interval '1 day') as y(day)
        ) e(edge)
        cross join lateral (
            (select r.read_at, r.import_wh from effective_readings r
             where r.meter_id = m.id and r.read_at >= %(since)s and r.read_at > a.anchor_at and r.read_at < edge at time zone %(zone)s
             order by r.read_at desc limit 1)
            union all
            (select r.read_at, r.import_wh from effective_readings r
             where r.meter_id = m.id and r.read_at >= %(since)s and r.read_at > a.anchor_at and r.read_at >= edge at time zone %(zone)s
             order by r.read_at limit 1)
        ) n
    ) q
) p on true
where a.id = any(%(ids)s)

-- tariff_documents: tariffs by their checksum
select sha256, document from tariffs where sha256 = any(%(sha256s)s)

-- day_demands: the greatest half-hour demand of each local day of some meters, from registers read on the half hour
select d.meter_id, d.day, max(d.demand_w)::integer
from (
    select r.meter_id, ((r.read_at - interval '30 minutes') at time zone %(zone)s)::date as day,
           2 * (r.import_wh - lag(r.import_wh) over m) as demand_w, r.read_at - lag(r.read_at) over m as span
    from effective_readings r
    where r.meter_id = any(%(meter_ids)s) and r.read_at >= %(since)s and r.read_at <= %(until)s
      and extract(epoch from r.read_at)::bigint %% 1800 = 0
    window m as (partition by r.meter_id order by r.read_at)
) d
where d.span = interval '30 minutes' and d.demand_w >= 0
group by d.meter_id, d.day

-- points_around: the readings next to given instants of one meter, on both sides, and the estimates that hold
select distinct n.read_at, n.import_wh
from unnest(%(edges)s::timestamptz[]) edge
cross join lateral (
    (select r.read_at, r.import_wh from effective_readings r
     where r.meter_id = %(meter_id)s and r.read_at < edge order by r.read_at desc limit 1)
    union all
    (select r.read_at, r.import_wh from effective_readings r
     where r.meter_id = %(meter_id)s and r.read_at >= edge order by r.read_at limit 1)
) n
union
select e.read_at, e.import_wh from estimates_held(%(meter_id)s::integer) e
order by 1

-- posted_periods: what journals have booked for an account, by bill part and line, from one part on
select j.period, sum(j.energy_wh)::bigint as energy_wh,
       coalesce((select d.demand_w from demand_of_parts d
                 where d.account_id = %(account_id)s and d.period = j.period), 0) as demand_w,
       sum(j.assessed_wh)::bigint as assessed_wh,
       (select jsonb_object_agg(x.line, x.amount) from (
            select e.key as line, sum(e.value::bigint)::bigint as amount
            from journals k cross join lateral jsonb_each_text(k.lines) e
            where k.account_id = %(account_id)s and k.period = j.period group by e.key
        ) x) as lines
from journals j
where j.account_id = %(account_id)s and j.period >= %(since)s
group by j.period order by j.period

-- post_change: append an account's journals with their legs, the ids rise in the order given; write its new checkpoint,
-- levels and supply, tell its shard's owner and the consumer; the rest of the account stays
with j as materialized (
    select nextval('journals_id_seq') as id, r.*
    from jsonb_to_recordset(%(journals)s::jsonb) as r (
        kind text, local_day date, period date, from_wh bigint, to_wh bigint, energy_wh bigint, assessed_wh bigint,
        edge_quality text, demand_w integer, lines jsonb, reason text, about_id bigint, correction_id bigint, legs jsonb)
), booked as (
    insert into journals (id, kind, account_id, local_day, period, from_wh, to_wh, energy_wh, assessed_wh, edge_quality,
                          demand_w, lines, reason, about_id, correction_id)
    overriding system value
    select id, kind, %(id)s, local_day, period, from_wh, to_wh, energy_wh, assessed_wh, edge_quality, demand_w, lines,
           reason, about_id, correction_id
    from j
), split as (
    insert into legs (journal_id, n, ledger, line, amount_minor)
    select j.id, g.n, g.ledger, g.line, g.amount_minor
    from j, jsonb_to_recordset(j.legs) as g (n smallint, ledger text, line text, amount_minor bigint)
), saved as (
    update accounts set posted_minor = %(posted_minor)s, charged_minor = %(charged_minor)s, through = %(through)s,
        before_wh = %(before_wh)s, part_start_wh = %(part_start_wh)s, closed_wh = %(closed_wh)s,
        closed_zones = %(closed_zones)s, demand_w = %(demand_w)s, anchor_at = %(anchor_at)s, anchor_wh = %(anchor_wh)s,
        anchor_zones = %(anchor_zones)s,
        low_arm = %(low_arm)s, low_raised = %(low_raised)s, exhausted_arm = %(exhausted_arm)s,
        exhausted_raised = %(exhausted_raised)s, exhausted_at = %(exhausted_at)s, desired = %(desired)s,
        threshold_minor = %(threshold_minor)s, version = version + 1
    where id = %(id)s
), told as (
    insert into notices (account_id, kind, channel, facts)
    select %(id)s, k.kind, 'app', k.facts
    from jsonb_to_recordset(%(notices)s::jsonb) as k (kind text, facts jsonb)
)
insert into change_feed (shard, account_id, version) values (%(shard)s, %(id)s, %(version)s)
returning array(select id from j)

-- feed_account: tell the shard's owner that an account changed
insert into change_feed (shard, account_id, version) values (%(shard)s, %(id)s, %(version)s)

-- add_journals: append journals with their legs that are about no account; the ids rise in the order given
with j as materialized (
    select nextval('journals_id_seq') as id, r.*
    from jsonb_to_recordset(%(journals)s::jsonb) as r (kind text, reason text, about_id bigint, legs jsonb)
), booked as (
    insert into journals (id, kind, reason, about_id) overriding system value select id, kind, reason, about_id from j
), split as (
    insert into legs (journal_id, n, ledger, line, amount_minor)
    select j.id, g.n, g.ledger, g.line, g.amount_minor
    from j, jsonb_to_recordset(j.legs) as g (n smallint, ledger text, line text, amount_minor bigint)
)
select id from j

-- add_alarm: raise an alarm, once for its account, level, threshold and arm
insert into alarms (account_id, level, n, arm, level_minor, balance_minor)
values (%(account_id)s, %(level)s, %(n)s, %(arm)s, %(level_minor)s, %(balance_minor)s)

-- supersede_orders: a newer order of the same kind replaces the open one
update supply_orders set state = 'superseded'
where meter_id = %(meter_id)s and kind = %(kind)s and state in ('pending', 'held', 'sent')

-- add_order: order something of a meter under its next epoch
with epoch as (
    update meter_state set order_epoch = order_epoch + 1 where meter_id = %(meter_id)s returning order_epoch
)
insert into supply_orders (meter_id, account_id, shard, kind, epoch, relay, limit_w, level, balance_minor,
                           threshold_minor, cause, state)
select %(meter_id)s, %(account_id)s, %(shard)s, %(kind)s, epoch.order_epoch, %(relay)s, %(limit_w)s, %(level)s,
       %(balance_minor)s, %(threshold_minor)s, %(cause)s, %(state)s
from epoch
returning id

-- release_order: let a held order go, since its meter was heard
update supply_orders set state = 'pending', next_try_at = '-infinity' where id = %(id)s and state = 'held'

-- wake_dispatch: tell dispatchers at commit that there are orders
select pg_notify('orders', %(shard)s::text)

-- ask_recheck: an account that is locked by somebody else is to be looked at later
insert into rechecks (account_id, shard, late_since)
select id, shard, %(late_since)s from accounts where id = %(account_id)s
on conflict (account_id) do update set late_since = least(rechecks.late_since, excluded.late_since)

-- take_rechecks: accounts of some shards that wait for a look
select account_id, late_since from rechecks where shard = any(%(shards)s) order by account_id limit %(most)s

-- settle_recheck: the look was taken, in this transaction; forget the ask that it answers
delete from rechecks where account_id = %(account_id)s
returning late_since

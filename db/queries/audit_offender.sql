-- audit_shown_account: everything kept of one account beside its journals: the newest rows of each kind
select jsonb_build_object(
    'account', to_jsonb(a),
    'assignments', (select jsonb_agg(to_jsonb(x) order by x.from_day, x.id) from (
        select * from assignments where account_id = a.id order by from_day desc, id desc limit %(most)s) x),
    'meter', (select to_jsonb(x) from (
        select m.id, m.serial, m.rated_w, m.register_end_wh, i.from_at, s.order_epoch, s.relay, s.relay_at,
               (select jsonb_object_agg(era, last_tid) from last_tids where meter_id = m.id) as last_tids
        from installations i join meters m on m.id = i.meter_id left join meter_state s on s.meter_id = m.id
        where i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null) x),
    'register_segments', (select jsonb_agg(to_jsonb(x) order by x.from_at) from (
        select g.from_at, g.register_wh, g.start_wh, g.reason
        from installations i join register_segments g on g.meter_id = i.meter_id
        where i.usage_point_id = a.usage_point_id and i.role = 'billing' and i.to_at is null
        order by g.from_at desc limit %(most)s) x),
    'alarms', (select jsonb_agg(to_jsonb(x) order by x.id) from (
        select * from alarms where account_id = a.id order by id desc limit %(most)s) x),
    'orders', (select jsonb_agg(to_jsonb(x) order by x.id) from (
        select o.id, o.kind, o.epoch, o.relay, o.level, o.balance_minor, o.cause, o.state, o.created_at
        from supply_orders o join installations i on i.meter_id = o.meter_id
        where i.usage_point_id = a.usage_point_id and i.to_at is null order by o.id desc limit %(most)s) x),
    'dues', (select jsonb_agg(to_jsonb(x) order by x.id) from (
        select * from account_dues where account_id = a.id order by id desc limit %(most)s) x))
from accounts a where a.id = %(id)s

-- audit_shown_journals: journals of an account with their legs: some by name, and the newest
select to_jsonb(j) || jsonb_build_object('legs', coalesce((
    select jsonb_agg(jsonb_build_array(g.ledger, g.line, g.amount_minor) order by g.n)
    from (select * from legs where journal_id = j.id order by n limit 40) g), '[]'))
from journals j
where j.id = any(%(journal_ids)s)
   or j.id in (select id from journals where account_id = %(id)s order by id desc limit %(most)s)
order by j.id

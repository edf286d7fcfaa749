-- sealed_vending_keys: every vending key, sealed
select sgc, krn, sealed from vending_keys order by sgc, krn

-- add_vending_key: a sealed vending key, unless its supply group and revision have one
insert into vending_keys (sgc, krn, dkga, sealed, check_value)
values (%(sgc)s, %(krn)s, %(dkga)s, %(sealed)s, %(check_value)s)
on conflict (sgc, krn) do nothing

-- vending_key_by_id: the sealed vending key of a supply group and revision
select sealed from vending_keys where sgc = %(sgc)s and krn = %(krn)s

-- vending_keys_loaded: every vending key without its secret, with the event that brought it in
select k.sgc, k.krn, k.dkga, k.check_value, e.at as loaded_at, e.by as loaded_by, e.beside as loaded_beside
from vending_keys k
left join lateral (
    select at, by, beside from key_events
    where sgc = k.sgc and krn = k.krn and event in ('generated', 'loaded')
    order by id desc limit 1
) e on true
order by k.sgc, k.krn

-- lock_vending_key: let one load or retirement of a key at a time take place; a statement of its own, look later
select pg_advisory_xact_lock(hashtextextended('vending key ' || %(sgc)s || ' ' || %(krn)s::int::text, 0))

-- retire_vending_key: a vending key leaves the installation
delete from vending_keys where sgc = %(sgc)s and krn = %(krn)s and check_value = %(check_value)s returning dkga

-- meters_under_key: how many meters hold a key, or wait for it, by their records
select count(*) from meter_records where sgc = %(sgc)s and krn = %(krn)s and state in ('active', 'pending')

-- begin_key_load: the first component, sealed, waits for the second
insert into key_loads (sgc, krn, dkga, component, check_value, begun_by, begun_at, lapses_at)
values (%(sgc)s, %(krn)s, %(dkga)s, %(component)s, %(check_value)s, %(by)s, %(now)s, %(lapses_at)s)

-- waiting_key_load: the load of a key that waits for its second component
select id, sgc, krn, dkga, component, check_value, begun_by, begun_at, lapses_at
from key_loads where sgc = %(sgc)s and krn = %(krn)s and state = 'waiting'

-- waiting_key_loads: every load that waits
select id, sgc, krn, dkga, component, check_value, begun_by, begun_at, lapses_at
from key_loads where state = 'waiting' order by sgc, krn

-- end_key_load: a load is over, and its component erased
update key_loads set state = %(state)s, component = null where id = %(id)s and state = 'waiting'

-- add_key_event: something was done to a vending key
insert into key_events (at, event, sgc, krn, dkga, check_value, by, beside, reason)
values (%(at)s, %(event)s, %(sgc)s, %(krn)s, %(dkga)s, %(check_value)s, %(by)s, %(beside)s, %(reason)s)

-- key_events_latest: the latest things that were done to vending keys
select at, event, sgc, krn, dkga, check_value, by, beside, reason from key_events order by id desc limit %(limit)s

-- last_key_event: the number of the latest thing that changed which keys there are
select coalesce(max(id), 0) from key_events where event in ('generated', 'loaded', 'retired')

-- ensure_risk_day: a module's row of a day
insert into risk_days (module, day) values (%(module)s, %(day)s) on conflict do nothing

-- lock_risk_day: what has been taken of a module's day, held for whoever takes more
select tokens, minor, tenths from risk_days where module = %(module)s and day = %(day)s for update

-- take_risk: more of a module's day is taken
update risk_days set tokens = tokens + %(tokens)s, minor = minor + %(minor)s, tenths = tenths + %(tenths)s
where module = %(module)s and day = %(day)s

-- risk_day: what has been taken of a module's day
select tokens, minor, tenths from risk_days where module = %(module)s and day = %(day)s

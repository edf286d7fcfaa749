-- paygo_device: an OpenPAYGO device with its sealed key
select m.serial, d.sealed_key, d.starting_code, d.time_divider, d.restricted_digits, d.extended
from paygo_devices d
join meters m on m.id = d.meter_id
where d.meter_id = %(meter_id)s

-- meters_as_paygo: meters by serial, each with its OpenPAYGO device where it has one
select m.id as meter_id, m.serial, d.sealed_key, d.starting_code, d.time_divider, d.restricted_digits, d.extended
from meters m
left join paygo_devices d on d.meter_id = m.id
where m.serial = any(%(serials)s)

-- write_paygo_device: a device as its maker's list says it, in the place of what was known before
insert into paygo_devices (meter_id, sealed_key, starting_code, time_divider, restricted_digits, extended, written_by, reason)
values (%(meter_id)s, %(sealed_key)s, %(starting_code)s, %(time_divider)s, %(restricted_digits)s, %(extended)s,
        %(written_by)s, %(reason)s)
on conflict (meter_id) do update
set sealed_key = excluded.sealed_key, starting_code = excluded.starting_code, time_divider = excluded.time_divider,
    restricted_digits = excluded.restricted_digits, extended = excluded.extended, written_at = clock_timestamp(),
    written_by = excluded.written_by, reason = excluded.reason

-- raise_paygo_count: no token of a device is made at or below a count that it has seen; never lowered
insert into last_tids (meter_id, era, last_tid) values (%(meter_id)s, 0, %(count)s)
on conflict (meter_id, era) do update set last_tid = greatest(last_tids.last_tid, excluded.last_tid)

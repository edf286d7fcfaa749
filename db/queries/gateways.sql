-- gateway_add_line: a line; one whose name is there takes the new address
insert into modbus_lines (name, framing, host, port, device, baud, parity, timeout_ms)
values (%(name)s, %(framing)s, %(host)s, %(port)s, %(device)s, %(baud)s, %(parity)s, %(timeout_ms)s)
on conflict (name) do update set framing = excluded.framing, host = excluded.host, port = excluded.port,
    device = excluded.device, baud = excluded.baud, parity = excluded.parity, timeout_ms = excluded.timeout_ms,
    enabled = true
returning id

-- gateway_known_lines: where lines are
select name, framing, host, port, device from modbus_lines

-- gateway_placed: those of some meters that stand on a line
select m.serial from meters m join modbus_meters p on p.meter_id = m.id where m.serial = any(%(serials)s)

-- gateway_taken_units: the units of some lines that are taken
select l.name, p.unit, m.serial
from modbus_lines l join modbus_meters p on p.line_id = l.id join meters m on m.id = p.meter_id
where l.name = any(%(names)s)

-- gateway_enable_line: a line is polled, or no more
update modbus_lines set enabled = %(enabled)s where name = %(name)s returning id

-- gateway_add_meter: a registered meter on a line; its orders leave over Modbus, and no stored readings are asked of it
with known as (
    select m.id as meter_id, l.id as line_id
    from meters m cross join modbus_lines l where m.serial = %(serial)s and l.name = %(line)s
), placed as (
    insert into modbus_meters (meter_id, line_id, unit, model, poll_s, word_order, base, confirmed, relay_model,
                               relay_unit, relay_address, device_serial)
    select meter_id, line_id, %(unit)s, %(model)s, %(poll_s)s, %(word_order)s, %(base)s, %(confirmed)s,
           %(relay_model)s, %(relay_unit)s, %(relay_address)s, %(device_serial)s
    from known
    on conflict (meter_id) do update set line_id = excluded.line_id, unit = excluded.unit, model = excluded.model,
        poll_s = excluded.poll_s, word_order = excluded.word_order, base = excluded.base,
        confirmed = excluded.confirmed, relay_model = excluded.relay_model, relay_unit = excluded.relay_unit,
        relay_address = excluded.relay_address, device_serial = excluded.device_serial, enabled = true, state = 'new', detail = null,
        state_at = clock_timestamp()
    returning meter_id
)
update meters m set transport = 'modbus', can_read_again = false, can_limit = false
from placed p where m.id = p.meter_id returning m.id

-- gateway_enable_meter: a meter is polled, or no more; its orders wait meanwhile
update modbus_meters p set enabled = %(enabled)s from meters m where m.id = p.meter_id and m.serial = %(serial)s
returning p.meter_id

-- gateway_any_line: whether anything is to be polled
select exists (select from modbus_lines where enabled)

-- gateway_lines: the lines of some shards that are polled
select id, name, framing, host, port, device, baud, parity, timeout_ms
from modbus_lines where enabled and shard = any(%(shards)s) order by id

-- gateway_meters: the meters of some shards' lines that are polled
select p.line_id, p.meter_id, m.serial, p.unit, p.model, p.poll_s, p.word_order, p.base, p.confirmed, p.relay_model, p.relay_unit,
       p.relay_address, p.device_serial, m.rated_w, p.state = 'silent' as was_silent,
       p.supply_epoch, p.supply_order_id
from modbus_meters p join modbus_lines l on l.id = p.line_id join meters m on m.id = p.meter_id
where p.enabled and l.enabled and l.shard = any(%(shards)s) order by p.line_id, p.unit

-- gateway_note_states: how polling of some meters goes
update modbus_meters p set state = n.state, detail = n.detail, state_at = n.at
from unnest(%(serials)s::text[], %(states)s::text[], %(details)s::text[], %(ats)s::timestamptz[])
    as n(serial, state, detail, at)
join meters m on m.serial = n.serial
where p.meter_id = m.id

-- gateway_note_obeyed: the latest orders of supply that some meters have obeyed; never back to an older one
update modbus_meters p set supply_epoch = n.epoch, supply_order_id = n.order_id
from unnest(%(serials)s::text[], %(epochs)s::bigint[], %(orders)s::bigint[]) as n(serial, epoch, order_id)
join meters m on m.serial = n.serial
where p.meter_id = m.id and p.supply_epoch < n.epoch

-- gateway_wake_orders: what some meters could not do as they were wired before is tried again
update supply_orders set next_try_at = '-infinity', waits_for = null
where meter_id = any(%(meter_ids)s) and state = 'pending' and waits_for = 'impossible'

-- gateway_end_alarms: alarms of some codes of meters that are read again
update event_alarms set ended_at = clock_timestamp()
where meter_id = any(%(meter_ids)s) and code = any(%(codes)s) and ended_at is null

-- gateway_list_lines: lines with the number of their meters by state, and who polls them
select l.name, l.framing, l.host, l.port, l.device, l.baud, l.parity, l.timeout_ms, l.enabled,
       case when s.expires_at > clock_timestamp() then s.owner end as owner,
       count(p.meter_id) filter (where p.enabled) as meters,
       count(p.meter_id) filter (where p.enabled and p.state = 'read') as meters_read
from modbus_lines l
join shard_leases s on s.role = 'gateway' and s.shard = l.shard
left join modbus_meters p on p.line_id = l.id
group by l.id, s.owner, s.expires_at order by l.name

-- gateway_list_meters: polled meters and how it goes, a page by serial
select m.serial, l.name as line, p.unit, p.model, p.poll_s, p.word_order, p.base, p.confirmed, p.relay_model,
       p.relay_unit, p.relay_address, p.device_serial, p.enabled, p.state, p.detail, p.state_at
from modbus_meters p join modbus_lines l on l.id = p.line_id join meters m on m.id = p.meter_id
where m.serial > %(after)s and (%(line)s::text is null or l.name = %(line)s)
  and (%(state)s::text is null or p.state = %(state)s)
order by m.serial limit %(most)s

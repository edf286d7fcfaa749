-- swap_meters: the meters of a swap by serial: where each stands now, whose it is, and until when it stood anywhere
select m.serial, m.id, m.shard, m.custody, m.register_end_wh, i.usage_point_id, i.role,
       (select max(f.to_at) from installations f where f.meter_id = m.id and f.to_at is not null) as free_from
from meters m left join installations i on i.meter_id = m.id and i.to_at is null
where m.serial = any(%(serials)s)

-- swap_fence: wait for the batches of the shards that have begun, and let later ones wait
select shard from shard_leases where role = 'ingest' and shard = any(%(shards)s) order by shard for update

-- swap_latest: the latest reading that is stored of a meter, void or not
select max(read_at) from readings where meter_id = %(meter_id)s and read_at >= %(since)s

-- swap_take_away: the old meter stands there until an instant
update installations set to_at = %(at)s where meter_id = %(meter_id)s and to_at is null

-- swap_install: the new meter stands there from that instant on
insert into installations (usage_point_id, meter_id, role, from_at)
values (%(usage_point_id)s, %(meter_id)s, 'billing', %(at)s)

-- swap_segment: the account's energy goes on at the new register
insert into register_segments (meter_id, from_at, register_wh, start_wh, reason)
values (%(meter_id)s, %(at)s, %(opening_wh)s, %(energy_wh)s, 'swap')

-- swap_account: the account goes with its meter's shard; its curve goes on from the swap
update accounts set shard = %(shard)s, anchor_at = %(at)s, anchor_wh = %(energy_wh)s, anchor_zones = %(anchor_zones)s,
    version = version + 1
where id = %(account_id)s returning version

-- swap_recheck: a look that is asked for goes with the account
update rechecks set shard = %(shard)s where account_id = %(account_id)s

-- swap_orders: what the old meter was told is over
update supply_orders set state = 'superseded' where meter_id = %(meter_id)s and state in ('pending', 'held', 'sent')

-- add_swap: keep what was read at both meters
insert into meter_swaps (account_id, old_meter_id, new_meter_id, at, closing_wh, opening_wh, energy_wh, reason,
                         swapped_by, entered_at)
values (%(account_id)s, %(old_meter_id)s, %(new_meter_id)s, %(at)s, %(closing_wh)s, %(opening_wh)s, %(energy_wh)s,
        %(reason)s, %(swapped_by)s, %(entered_at)s)
returning id

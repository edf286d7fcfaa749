-- add_meter: a meter, its changing state, and its first record if it takes STS tokens; a serial that is there stays
with added as (
    insert into meters (serial, shard, make, model, rated_w, register_end_wh, custody, can_limit,
                        can_read_again, interval_s, drn)
    values (%(serial)s, %(shard)s, %(make)s, %(model)s, %(rated_w)s, %(register_end_wh)s, %(custody)s, %(can_limit)s,
            %(can_read_again)s, %(interval_s)s, %(drn)s)
    on conflict (serial) do nothing
    returning id, drn
), recorded as (
    insert into meter_records (meter_id, version, state, engine, ea, tct, dkga, sgc, key_type, krn, tariff_index, ken,
                               base_year, key_change_tokens, capabilities, written_by, reason, valid_from)
    select id, 1, 'active', 'sts', %(ea)s, %(tct)s, %(dkga)s, %(sgc)s, %(key_type)s, %(krn)s, %(tariff_index)s,
           %(ken)s, %(base_year)s, %(key_change_tokens)s, %(capabilities)s, 'registration', 'as registered',
           clock_timestamp()
    from added where drn is not null
)
insert into meter_state (meter_id) select id from added returning meter_id

-- find_meter: a meter by serial, and whether it stands somewhere
select m.id, m.shard, i.id is not null as installed, m.custody
from meters m left join installations i on i.meter_id = m.id and i.to_at is null
where m.serial = %(serial)s

-- find_account: an account by its number
select id from accounts where number = %(number)s

-- add_consumer: who is supplied
insert into consumers (name, language) values (%(name)s, %(language)s) returning id

-- add_contact: where a consumer is reached
insert into contacts (consumer_id, channel, address, language)
values (%(consumer_id)s, %(channel)s, %(address)s, %(language)s)

-- add_usage_point: where supply is taken
insert into usage_points (code, area, feeder) values (%(code)s, %(area)s, %(feeder)s) returning id

-- install_meter: a meter at a usage point from an instant on
insert into installations (usage_point_id, meter_id, role, from_at)
values (%(usage_point_id)s, %(meter_id)s, 'billing', %(from_at)s)

-- begin_segment: where the energy of an installation begins
insert into register_segments (meter_id, from_at, register_wh, start_wh, reason)
values (%(meter_id)s, %(from_at)s, %(register_wh)s, 0, 'installed')

-- add_account: an account at its opening
insert into accounts (number, consumer_id, usage_point_id, shard, mode, postpaid_approval, opened_on,
                      emergency_credit_minor, threshold_minor, through, anchor_at)
values (%(number)s, %(consumer_id)s, %(usage_point_id)s, %(shard)s, %(mode)s, %(postpaid_approval)s, %(opened_on)s,
        %(emergency_credit_minor)s, %(threshold_minor)s, %(opened_on)s, %(from_at)s)
returning id

-- add_assignment: what an account is charged by from a day on
insert into assignments (account_id, from_day, tariff_id, category, load_w, area_type, meter_rent)
values (%(account_id)s, %(from_day)s, %(tariff_id)s, %(category)s, %(load_w)s, %(area_type)s, %(meter_rent)s)
returning id

-- begin_zones: an account whose first tariff has zones counts its energy by zone from its opening
update accounts set anchor_zones = %(zones)s, closed_zones = %(zones)s where id = %(id)s

-- register_vendor: who sells recharges, with a float of its own; a name that is there is left as it is, unless it is the
-- utility's own
with named as (
    insert into vendors (name) values (%(name)s)
    on conflict (name) do update set name = excluded.name where vendors.system is null
    returning id
), floated as (
    insert into vendor_floats (vendor_id) select id from named on conflict do nothing
)
select id from named

-- accounts_to_close: accounts of a range with days to close, in id order from one id on
select id, through from accounts
where id > %(after)s and id <= %(last)s and through <= %(until)s order by id limit %(most)s

-- still_to_close: those of some accounts that have days to close
select id from accounts where id = any(%(ids)s) and through <= %(until)s order by id

-- add_tariff: a tariff document; an id that is there keeps its text, unless a migration has emptied it
insert into tariffs (id, document, sha256, edges, asks_demand)
values (%(id)s, %(document)s, %(sha256)s, %(edges)s, %(asks_demand)s)
on conflict (id) do update set document = excluded.document, sha256 = excluded.sha256, edges = excluded.edges,
    asks_demand = excluded.asks_demand
where tariffs.document = ''

-- tariff_checksum: the checksum of a tariff's document
select sha256 from tariffs where id = %(id)s

-- work_as_application: give up the rights of the owner for the rest of a session
set role prepaid_app

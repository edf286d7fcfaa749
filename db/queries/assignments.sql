-- standing_assignments: what some accounts are charged by, and their first open day
select a.number, a.id, a.through, x.from_day, f.sha256, x.category, x.load_w, x.area_type, x.meter_rent
from accounts a
join assignments x on x.account_id = a.id and x.replaced_by is null
join tariffs f on f.id = x.tariff_id
where a.number = any(%(numbers)s)
order by a.id, x.from_day

-- enter_assignment: the posted state of an account whose terms have changed
update accounts set charged_minor = %(charged_minor)s, before_wh = %(before_wh)s, part_start_wh = %(part_start_wh)s,
    closed_zones = %(closed_zones)s, demand_w = %(demand_w)s, anchor_zones = %(anchor_zones)s, version = version + 1
where id = %(id)s
returning shard, version

-- list_tariffs: every tariff that is there, with how many accounts are charged by it now or will be
select t.id, t.document, t.sha256, count(distinct x.account_id)
from tariffs t left join assignments x on x.tariff_id = t.id and x.replaced_by is null
group by t.id order by t.id

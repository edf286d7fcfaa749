-- held_before: sales that are held since before an instant, the oldest first
select id from vends where state = 'held' and created_at < %(before)s order by id limit %(most)s

-- never_confirmed_vends: sales that were held and taken back since an instant since nobody confirmed them
select v.id, n.name as vendor, v.message_id, v.terminal, v.amount_minor, v.created_at, o.at as taken_back_at
from vend_moves o
join vends v on v.id = o.vend_id
join vendors n on n.id = v.vendor_id
where o.reason = 'never_confirmed' and o.at >= %(since)s
order by o.at, v.id limit %(most)s

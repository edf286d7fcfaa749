-- slip_of_message: what a message id was answered as it stands now, with how often its slip was printed
select s.status, s.answer, s.state, s.cancelled, p.prints, p.first_at, p.last_at
from (
    select v.status, v.answer, v.state,
           exists (select 1 from vend_moves m where m.vend_id = v.id and (m.from_state, m.to_state) = ('held', 'reversed'))
               as cancelled
    from vends v where v.vendor_id = %(vendor_id)s and v.message_id = %(message_id)s
    union all
    select a.status, a.answer, 'released', false
    from vending_acts a where a.vendor_id = %(vendor_id)s and a.message_id = %(message_id)s
) s
cross join (
    select coalesce(max(number), 0) as prints, min(printed_at) as first_at, max(printed_at) as last_at
    from receipt_prints where vendor_id = %(vendor_id)s and message_id = %(message_id)s
) p

-- add_print: one more print of a slip; its message id is locked
insert into receipt_prints (vendor_id, message_id, number, printed_at, key_id, form, language)
select %(vendor_id)s, %(message_id)s, greatest(coalesce(max(number), 0) + 1, %(least)s), greatest(%(at)s, max(printed_at)), %(key_id)s,
       %(form)s, %(language)s
from receipt_prints where vendor_id = %(vendor_id)s and message_id = %(message_id)s
returning number, printed_at

-- The beginning of a sale in one round trip: waits for other requests under the message id and for the account that is
-- billed by the meter, then says what the id was used for, which meters the name may mean, and what the vendor's float
-- holds. Each statement of the function sees what was committed before that statement, so that what a lock waited for
-- is seen by the next one. An id that was answered already waits for no account. One row for each meter, or one without.
create function begin_sale(vendor bigint, message text, name text)
returns table (
    id bigint, state text, request_sha256 bytea, status smallint, answer jsonb, account_id bigint, journal_id bigint,
    amount_minor bigint, funding text, token_id bigint, is_act boolean, confirmed_early boolean,
    meter_id integer, serial text, drn text, make text, model text, billed_account_id bigint, anchor_at timestamptz,
    float_minor bigint, float_limit_minor bigint, float_entries bigint)
language plpgsql as $$
#variable_conflict use_column
begin
    perform pg_advisory_xact_lock(hashtextextended(vendor || ':' || message, 0));
    if not exists (select from vends v where v.vendor_id = vendor and v.message_id = message) then
        perform from accounts a
        where a.usage_point_id in (
            select i.usage_point_id from installations i join meters m on m.id = i.meter_id
            where (m.serial = name or m.drn = name) and i.role = 'billing' and i.to_at is null)
        order by a.id for no key update;
    end if;
    return query
    select v.id, v.state, v.request_sha256, v.status, v.answer, v.account_id, v.journal_id, v.amount_minor, v.funding,
           (select t.id from tokens t where t.vend_id = v.id),
           exists (select from vending_acts a where a.vendor_id = vendor and a.message_id = message),
           exists (select from early_confirmations e where e.vendor_id = vendor and e.message_id = message),
           m.id, m.serial, m.drn, m.make, m.model, a.id, a.anchor_at, f.balance_minor, f.limit_minor, f.entries
    from (select vendor as vendor_id) n
    left join vends v on v.vendor_id = n.vendor_id and v.message_id = message
    left join vendor_floats f on f.vendor_id = n.vendor_id
    left join meters m on m.serial = name or m.drn = name
    left join installations i on i.meter_id = m.id and i.role = 'billing' and i.to_at is null
    left join accounts a on a.usage_point_id = i.usage_point_id;
end $$;

-- add_arrivals: sequence numbers that came with a batch, a row a shard
insert into sequence_arrivals (shard, messages, meter_ids, seqs, sent_ms, quarantined)
select a.shard, cardinality(a.seqs::bigint[]), a.meter_ids::integer[], a.seqs::bigint[], a.sent_ms::bigint[],
       a.quarantined::integer[]
from unnest(%(shards)s::smallint[], %(meter_ids)s::text[], %(seqs)s::text[], %(sent_ms)s::text[],
            %(quarantined)s::text[]) as a(shard, meter_ids, seqs, sent_ms, quarantined)

-- lock_arrivals: one process at a time counts what came; held to the end of the transaction
select pg_try_advisory_xact_lock(7405206103)

-- arrivals_due: shards with numbers that came before an instant and are not counted
select distinct shard from sequence_arrivals where arrived_at < %(before)s order by shard

-- take_arrivals: a shard's next numbers, in the order in which they came, up to so many messages; they are gone then
with counted as (
    select id, sum(messages) over (order by id) - messages as before from sequence_arrivals where shard = %(shard)s
), taken as (
    delete from sequence_arrivals a using counted c where a.id = c.id and c.before < %(most)s
    returning a.id, a.meter_ids, a.seqs, a.sent_ms, a.quarantined, a.arrived_at
)
select meter_ids, seqs, sent_ms, quarantined, arrived_at from taken order by id

-- arrivals_of_meter: what came of one meter and is not counted yet, in its order
select n.seq, n.sent_ms, n.place = any(a.quarantined), a.arrived_at
from sequence_arrivals a
cross join unnest(a.meter_ids, a.seqs, a.sent_ms) with ordinality as n(meter_id, seq, sent_ms, place)
where a.shard = %(shard)s and a.meter_ids @> array[%(meter_id)s::integer] and n.meter_id = %(meter_id)s
order by a.id, n.place

-- sequence_tracks: what is known of some meters' counts
select meter_id, epoch, began_ms, last_seq, last_ms, came, duplicate, quarantined, given_up, holes
from meter_sequences where meter_id = any(%(meter_ids)s)

-- save_tracks: what is known of some meters' counts now
insert into meter_sequences (meter_id, since, heard_at, epoch, began_ms, last_seq, last_ms, came, duplicate,
                             quarantined, given_up, missing, holes)
select t.meter_id, t.heard_at, t.heard_at, t.epoch, t.began_ms, t.last_seq, t.last_ms, t.came, t.duplicate,
       t.quarantined, t.given_up, t.missing, t.holes::bigint[]
from unnest(%(meter_ids)s::integer[], %(heard_ats)s::timestamptz[], %(epochs)s::integer[], %(began_ms)s::bigint[],
            %(last_seqs)s::bigint[], %(last_ms)s::bigint[], %(came)s::bigint[], %(duplicate)s::bigint[],
            %(quarantined)s::bigint[], %(given_up)s::bigint[], %(missing)s::bigint[], %(holes)s::text[])
     as t(meter_id, heard_at, epoch, began_ms, last_seq, last_ms, came, duplicate, quarantined, given_up, missing, holes)
on conflict (meter_id) do update set
    heard_at = excluded.heard_at, epoch = excluded.epoch, began_ms = excluded.began_ms, last_seq = excluded.last_seq,
    last_ms = excluded.last_ms, came = excluded.came, duplicate = excluded.duplicate,
    quarantined = excluded.quarantined, given_up = excluded.given_up, missing = excluded.missing,
    holes = excluded.holes

-- numbered_meter: a meter by its serial, and since when its messages are counted
select m.id, m.shard, s.since, s.heard_at
from meters m left join meter_sequences s on s.meter_id = m.id where m.serial = %(serial)s

-- sequence_totals: what all meters that count their messages have sent, and what became of it
select count(*) as meters, count(*) filter (where missing > 0) as meters_missing,
       coalesce(sum(came + missing), 0)::bigint as sent, coalesce(sum(came - quarantined), 0)::bigint as stored,
       coalesce(sum(duplicate), 0)::bigint as duplicate, coalesce(sum(quarantined), 0)::bigint as quarantined,
       coalesce(sum(missing), 0)::bigint as missing
from meter_sequences

-- arrivals_waiting: numbers that came and are not counted yet, and since when
select coalesce(sum(messages), 0)::bigint, min(arrived_at) from sequence_arrivals

-- meters_missing: the meters of which most is missing, page by page
select m.serial, s.meter_id, s.since, s.heard_at, s.epoch, s.began_ms, s.last_seq, s.last_ms, s.came, s.duplicate,
       s.quarantined, s.given_up, s.holes
from meter_sequences s join meters m on m.id = s.meter_id
where s.missing > 0
order by s.missing desc, s.meter_id offset %(skip)s limit %(most)s

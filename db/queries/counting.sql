-- look_once: everything that this transaction reads is of one moment
set transaction isolation level repeatable read, read only

-- counts_of_span: what came within a span, by shard, and rows whose outcomes do not add up; null is what has no shard
select shard, count(*) as batches, sum(messages)::bigint as messages, sum(received)::bigint as received,
       sum(stored)::bigint as stored, sum(duplicate)::bigint as duplicate, sum(rejected)::bigint as rejected,
       sum(quarantined)::bigint as quarantined,
       count(*) filter (where received <> stored + duplicate + rejected + quarantined) as broken
from batches
where committed_at >= %(since)s and committed_at < %(until)s
  and (%(shards)s::smallint[] is null or shard = any(%(shards)s))
group by shard order by shard nulls last

-- count_readings_of: readings stored for a day by UTC
select count(*) from readings where read_at >= %(first)s and read_at < %(last)s

-- count_quarantined: what lies in quarantine, as often as it came: held, and refused
select coalesce(sum(times - refused), 0)::bigint, coalesce(sum(refused), 0)::bigint from quarantine

-- rolled_up_to: up to when batches are rolled up; held to the end of the transaction
select upto from batch_roll_up for update skip locked

-- next_batch_hour: the first hour at or after an instant that has batches
select date_trunc('hour', committed_at) from batches where committed_at >= %(since)s and committed_at < %(until)s
order by committed_at limit 1

-- roll_up_hour: keep one row a shard of an hour's batches, with their sums; the row with the highest id stays
with hour as (
    select *, coalesce(shard, -1) as place from batches
    where committed_at >= %(since)s and committed_at < %(until)s
), sums as (
    select place, max(id) as id, max(epoch) as epoch, sum(messages) as messages, sum(received) as received,
           sum(stored) as stored, sum(duplicate) as duplicate, sum(rejected) as rejected,
           sum(quarantined) as quarantined, max(committed_at) as committed_at
    from hour group by place having count(*) > 1
), gone as (
    delete from batches b using hour h join sums s on s.place = h.place where b.id = h.id and h.id <> s.id
    returning b.id
), kept as (
    update batches b set epoch = s.epoch, messages = s.messages, received = s.received, stored = s.stored,
           duplicate = s.duplicate, rejected = s.rejected, quarantined = s.quarantined, committed_at = s.committed_at
    from sums s where b.id = s.id
)
select count(*) from gone

-- save_rolled_up: batches before an instant are rolled up
update batch_roll_up set upto = %(upto)s

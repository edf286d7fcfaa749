-- audit_snapshot: one snapshot for the whole audit, nothing written; its longest statements read millions of rows
set transaction isolation level repeatable read, read only;
set local statement_timeout = '10min'; set local work_mem = '64MB'; set local max_parallel_workers_per_gather = 0;
-- Each chunk probes a small part of big tables: a planner that takes the probes for dear would read all of them.
set local random_page_cost = 1.1;
-- Bill lines differ from journal to journal: remembering them by their text would only cost.
set local enable_memoize = off

-- audit_export: the snapshot's name for a second connection, and the database's clock
select pg_export_snapshot(), now()

-- audit_extent: how far the audit has to go: accounts, and the last journal
select (select count(*) from accounts), (select coalesce(max(id), 0) from journals)

-- audit_sample: so many accounts, spread evenly over all ids by a multiplicative hash; the same ones each time
select id from (
    select id from accounts order by id %% 2147483648 * 2654435761 %% 4294967296, id limit %(most)s
) s order by id

-- audit_numbers: accounts by their numbers
select number, id from accounts where number = any(%(numbers)s)

-- audit_migrations_begun: whether a database has been migrated at all
select to_regclass('migrations') is not null

-- audit_migrations: the migrations that a database has
select name from migrations

-- import_tariffs: tariffs that an account may be opened on
select id from tariffs

-- import_drns: meters that hold some DRNs already
select drn, serial from meters where drn = any(%(drns)s)

-- import_serials: meters by serial: where the register ends, and whether each stands somewhere
select m.serial, m.register_end_wh, i.id is not null as installed
from meters m left join installations i on i.meter_id = m.id and i.to_at is null
where m.serial = any(%(serials)s)

-- import_numbers: those of some account numbers that are taken
select number from accounts where number = any(%(numbers)s)

-- import_usage_points: those of some usage point codes that are taken
select code from usage_points where code = any(%(codes)s)

-- account_demands: energy, greatest demand and assessed energy that journals have booked for some accounts, by bill part
select j.account_id, j.period, sum(j.energy_wh)::bigint,
       coalesce((select d.demand_w from demand_of_parts d where d.account_id = j.account_id and d.period = j.period), 0),
       sum(j.assessed_wh)::bigint
from journals j where j.account_id = any(%(ids)s) and j.period is not null
group by j.account_id, j.period

-- Sessions of an owner whose lease ran out are found by its name (0018): the number of one of them is of no use.
alter table shard_leases drop column backend_pid;

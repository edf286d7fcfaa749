-- The hour's limit counts cut-offs, not commands: a few hundred meters that are out of reach for months, each tried again
-- and again, must not hold their area. The minute's limit counts every command.
alter table cut_off_counts add column first_tries integer not null default 0;
update cut_off_counts set first_tries = sent;

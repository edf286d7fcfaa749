-- What a consumer asks of an account's money: recharges and other bookings without walking over its days. Only what is
-- rare is in this index: a day's journal, of which there is one for each account and night, is not.
create index money_of_account on journals (account_id, id) where kind <> 'day';

-- What people look through at the vending desk: sales that were held and never confirmed; and reprints as JSON, counted.

-- All moves are looked through once.
set local statement_timeout = 0;

create index moves_never_confirmed on vend_moves (at) where reason = 'never_confirmed';

-- A station prints the copy itself; number 1 is then the original that it printed from the answer to its sale.
alter table receipt_prints drop constraint receipt_prints_form_check;
alter table receipt_prints add constraint receipt_prints_form_check check (form in ('text', 'html', 'json'));

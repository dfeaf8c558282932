-- The epoch under which an entry was written (P21); NULL in what is older than this column.
ALTER TABLE journal ADD COLUMN epoch INTEGER;

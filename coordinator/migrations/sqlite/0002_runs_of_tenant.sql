-- The list of one tenant's runs, newest first: as `runs_by_time` for all of them.
CREATE INDEX runs_of_tenant ON runs (tenant, submitted_at_ms, run);

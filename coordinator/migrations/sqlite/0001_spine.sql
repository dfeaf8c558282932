-- Numbers are 64 bits, ids and JSON are text. Columns named *_ms are milliseconds since the Unix epoch.

-- Who leads (P21): one row, taken by compare-and-set, touched by every transaction.
CREATE TABLE epoch (
    id            INTEGER PRIMARY KEY CHECK (id = 1),
    epoch         INTEGER NOT NULL,
    renewed_at_ms INTEGER NOT NULL, -- by the store's own clock
    holder        TEXT    NOT NULL  -- for people
);
INSERT INTO epoch (id, epoch, renewed_at_ms, holder) VALUES (1, 0, 0, '');

-- What became true, in order. `run` is NULL for what concerns a worker.
CREATE TABLE journal (
    seq    INTEGER PRIMARY KEY,
    run    TEXT,
    worker TEXT, -- only of `heard`, of which only a worker's newest counts
    at_ms  INTEGER NOT NULL,
    entry  TEXT    NOT NULL
);
CREATE INDEX journal_of_run ON journal (run, seq);
CREATE INDEX journal_heard ON journal (worker, seq) WHERE worker IS NOT NULL;

-- Read tables: JSON views, rewritten when they change. `change` grows with every rewritten row of
-- either table and every row of log_rows; it is never given twice, so it names a place to resume from.
CREATE TABLE runs (
    run             TEXT    PRIMARY KEY,
    submitted_at_ms INTEGER NOT NULL,
    tenant          TEXT    NOT NULL,
    pipeline_hash   TEXT    NOT NULL,
    done            BOOLEAN NOT NULL, -- settled, and every log closed
    change          INTEGER NOT NULL,
    summary         TEXT    NOT NULL
);
CREATE INDEX runs_by_time ON runs (submitted_at_ms, run);
CREATE INDEX runs_open ON runs (done) WHERE NOT done;

CREATE TABLE steps (
    run       TEXT    NOT NULL,
    idx       INTEGER NOT NULL, -- in the pipeline's order
    step      TEXT    NOT NULL,
    execution TEXT    NOT NULL,
    change    INTEGER NOT NULL,
    view      TEXT    NOT NULL,
    PRIMARY KEY (run, idx)
);
CREATE INDEX steps_by_name ON steps (run, step);
CREATE INDEX steps_by_change ON steps (run, change);

-- Messages to be published, in order, each until it is confirmed (P3).
CREATE TABLE outbox (
    id          INTEGER PRIMARY KEY,
    about       TEXT    NOT NULL, -- JSON: which job, or that it is a control message
    exchange    TEXT    NOT NULL,
    routing_key TEXT    NOT NULL,
    body        BLOB    NOT NULL
);

-- One log per attempt (P14). Offsets count what is stored, contiguous from 0.
CREATE TABLE logs (
    execution TEXT    NOT NULL,
    attempt   INTEGER NOT NULL,
    run       TEXT    NOT NULL,
    step      TEXT    NOT NULL,
    stdout    INTEGER NOT NULL,
    stderr    INTEGER NOT NULL,
    lines     INTEGER NOT NULL,
    closed    BOOLEAN NOT NULL,
    PRIMARY KEY (execution, attempt)
);
CREATE INDEX logs_of_run ON logs (run);

-- Lines in the order in which they were stored, some to a row. `data` (JSON lines) goes when the
-- lines are sealed in a chunk; the row stays, because it is the order across the logs of a run.
CREATE TABLE log_rows (
    change     INTEGER PRIMARY KEY,
    run        TEXT    NOT NULL,
    execution  TEXT    NOT NULL,
    attempt    INTEGER NOT NULL,
    first_line INTEGER NOT NULL, -- from 1
    lines      INTEGER NOT NULL, -- 0: a gap
    data       BLOB,
    gap        TEXT
);
CREATE INDEX log_rows_of_run ON log_rows (run, change);
CREATE INDEX log_rows_of_log ON log_rows (execution, attempt, first_line);
CREATE INDEX log_rows_of_execution ON log_rows (execution, change);

-- Sealed chunks: zstd files in the blob directory, named after the log and the first line.
CREATE TABLE log_chunks (
    execution  TEXT    NOT NULL,
    attempt    INTEGER NOT NULL,
    first_line INTEGER NOT NULL,
    lines      INTEGER NOT NULL,
    stdout     INTEGER NOT NULL, -- offsets of the streams before its first line
    stderr     INTEGER NOT NULL,
    bytes      INTEGER NOT NULL, -- of the file
    PRIMARY KEY (execution, attempt, first_line)
);

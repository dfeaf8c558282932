-- The tables of migrations/sqlite, as they are after its last file: see there for what each is. What differs is said here.
-- Texts that are compared or sorted are ids and names of ours: byte by byte, whatever the database's own order is.

CREATE TABLE epoch (
    id            BIGINT PRIMARY KEY CHECK (id = 1),
    epoch         BIGINT NOT NULL,
    renewed_at_ms BIGINT NOT NULL, -- by the server's clock_timestamp(): now() is when the transaction began
    holder        TEXT   NOT NULL
);
INSERT INTO epoch (id, epoch, renewed_at_ms, holder) VALUES (1, 0, 0, '');

CREATE TABLE journal (
    seq    BIGINT PRIMARY KEY,
    run    TEXT COLLATE "C",
    worker TEXT COLLATE "C",
    at_ms  BIGINT NOT NULL,
    entry  TEXT   NOT NULL,
    epoch  BIGINT
);
CREATE INDEX journal_of_run ON journal (run, seq);
CREATE INDEX journal_heard ON journal (worker, seq) WHERE worker IS NOT NULL;

CREATE TABLE runs (
    run             TEXT COLLATE "C" PRIMARY KEY,
    submitted_at_ms BIGINT  NOT NULL,
    tenant          TEXT COLLATE "C" NOT NULL,
    pipeline_hash   TEXT    NOT NULL,
    done            BOOLEAN NOT NULL,
    change          BIGINT  NOT NULL,
    summary         TEXT    NOT NULL
);
CREATE INDEX runs_by_time ON runs (submitted_at_ms, run);
CREATE INDEX runs_of_tenant ON runs (tenant, submitted_at_ms, run);
CREATE INDEX runs_open ON runs (run) WHERE NOT done;
-- The last change of all is asked for when a coordinator has just died: it is not looked for in whole tables.
CREATE INDEX runs_by_change ON runs (change);

CREATE TABLE steps (
    run       TEXT COLLATE "C" NOT NULL,
    idx       BIGINT NOT NULL,
    step      TEXT COLLATE "C" NOT NULL,
    execution TEXT COLLATE "C" NOT NULL,
    change    BIGINT NOT NULL,
    view      TEXT   NOT NULL,
    PRIMARY KEY (run, idx)
);
CREATE INDEX steps_by_name ON steps (run, step);
CREATE INDEX steps_by_change ON steps (run, change);
CREATE INDEX steps_by_last_change ON steps (change);

CREATE TABLE outbox (
    id          BIGINT PRIMARY KEY,
    about       TEXT  NOT NULL,
    exchange    TEXT  NOT NULL,
    routing_key TEXT  NOT NULL,
    body        BYTEA NOT NULL
);

CREATE TABLE logs (
    execution TEXT COLLATE "C" NOT NULL,
    attempt   BIGINT  NOT NULL,
    run       TEXT COLLATE "C" NOT NULL,
    step      TEXT    NOT NULL,
    stdout    BIGINT  NOT NULL,
    stderr    BIGINT  NOT NULL,
    lines     BIGINT  NOT NULL,
    closed    BOOLEAN NOT NULL,
    PRIMARY KEY (execution, attempt)
);
CREATE INDEX logs_of_run ON logs (run);

CREATE TABLE log_rows (
    change     BIGINT PRIMARY KEY,
    run        TEXT COLLATE "C" NOT NULL,
    execution  TEXT COLLATE "C" NOT NULL,
    attempt    BIGINT NOT NULL,
    first_line BIGINT NOT NULL,
    lines      BIGINT NOT NULL,
    data       BYTEA,
    gap        TEXT
);
-- What is long was packed by us.
ALTER TABLE log_rows ALTER COLUMN data SET STORAGE EXTERNAL;
CREATE INDEX log_rows_of_run ON log_rows (run, change);
CREATE INDEX log_rows_of_log ON log_rows (execution, attempt, first_line);
CREATE INDEX log_rows_of_execution ON log_rows (execution, change);

CREATE TABLE log_chunks (
    execution  TEXT COLLATE "C" NOT NULL,
    attempt    BIGINT NOT NULL,
    first_line BIGINT NOT NULL,
    lines      BIGINT NOT NULL,
    stdout     BIGINT NOT NULL,
    stderr     BIGINT NOT NULL,
    bytes      BIGINT NOT NULL,
    PRIMARY KEY (execution, attempt, first_line)
);

-- Which directory the coordinators of this database share for blobs and sealed logs: one row, once one has started.
CREATE TABLE directory (
    id     BIGINT PRIMARY KEY CHECK (id = 1),
    marker TEXT   NOT NULL
);

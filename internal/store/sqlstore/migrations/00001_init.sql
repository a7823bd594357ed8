-- The first schema. It runs unchanged on SQLite and PostgreSQL: TEXT, BIGINT and
-- BYTEA only (SQLite keeps blobs as they are under any type name). Times are
-- BIGINT Unix milliseconds, 0 when unset; durations are BIGINT nanoseconds.
-- A doc is the JSON of what needs no column. Forward only: there is no Down.

-- +goose Up

-- The one row of the store's revision.
CREATE TABLE meta (
    id     BIGINT NOT NULL PRIMARY KEY CHECK (id = 0),
    epoch  BIGINT NOT NULL CHECK (epoch >= 1),
    number BIGINT NOT NULL CHECK (number >= 0)
);
INSERT INTO meta (id, epoch, number) VALUES (0, 1, 0);

CREATE TABLE service (
    name TEXT NOT NULL PRIMARY KEY CHECK (name <> ''),
    doc  TEXT NOT NULL
);

CREATE TABLE policy (
    name TEXT NOT NULL PRIMARY KEY CHECK (name <> ''),
    doc  TEXT NOT NULL
);

CREATE TABLE credential (
    service        TEXT   NOT NULL REFERENCES service (name),
    environment    TEXT   NOT NULL CHECK (environment <> ''),
    primary_slot   BIGINT NOT NULL CHECK (primary_slot >= 0),
    fallback_slot  BIGINT NOT NULL CHECK (fallback_slot >= 0),
    candidate_slot BIGINT NOT NULL CHECK (candidate_slot >= 0),
    next_number    BIGINT NOT NULL CHECK (next_number >= 0),
    policy         TEXT   NOT NULL,
    upstream       TEXT   NOT NULL,
    epoch          BIGINT NOT NULL CHECK (epoch >= 0),
    revision       BIGINT NOT NULL CHECK (revision >= 0),
    created_ms     BIGINT NOT NULL,
    rotated_ms     BIGINT NOT NULL,
    doc            TEXT   NOT NULL,
    PRIMARY KEY (service, environment)
);
CREATE INDEX credential_revision ON credential (epoch, revision);

-- The numbers of deleted credentials, so that none is ever used again.
CREATE TABLE spent (
    service     TEXT   NOT NULL,
    environment TEXT   NOT NULL,
    next_number BIGINT NOT NULL,
    PRIMARY KEY (service, environment)
);

-- A version that another one has put out of its slot is parked until it is
-- written itself. Parked is 1 then, for which meta has no row: the deferred key
-- refuses to commit it.
CREATE TABLE version (
    service     TEXT   NOT NULL,
    environment TEXT   NOT NULL,
    number      BIGINT NOT NULL CHECK (number >= 1),
    state       TEXT   NOT NULL CHECK (state IN (
        'intent', 'void', 'unknown', 'orphan', 'candidate', 'fallback', 'primary', 'retired',
        'disabling', 'disabled', 'revoking', 'revoked', 'revoke_unproven', 'superseded')),
    parked      BIGINT NOT NULL DEFAULT 0 REFERENCES meta (id) DEFERRABLE INITIALLY DEFERRED,
    origin      TEXT   NOT NULL CHECK (origin IN ('issued', 'set', 'imported', 'adopted')),
    vendor_id   TEXT   NOT NULL,
    label       TEXT   NOT NULL,
    fingerprint TEXT   NOT NULL,
    read_out    BIGINT NOT NULL CHECK (read_out IN (0, 1)),
    created_ms  BIGINT NOT NULL,
    since_ms    BIGINT NOT NULL,
    expires_ms  BIGINT NOT NULL,
    saved       TEXT   NOT NULL,
    note        TEXT   NOT NULL,
    rotation    TEXT   NOT NULL,
    PRIMARY KEY (service, environment, number),
    FOREIGN KEY (service, environment) REFERENCES credential (service, environment) ON DELETE CASCADE,
    CHECK (parked = 0 OR state IN ('primary', 'fallback', 'candidate'))
);
CREATE UNIQUE INDEX version_slot ON version (service, environment, state)
    WHERE parked = 0 AND state IN ('primary', 'fallback', 'candidate');
CREATE UNIQUE INDEX version_fingerprint ON version (service, environment, fingerprint)
    WHERE fingerprint <> '';
CREATE INDEX version_state ON version (state);

CREATE TABLE data_key (
    name       TEXT   NOT NULL PRIMARY KEY CHECK (name <> ''),
    wrapped    BYTEA  NOT NULL,
    created_ms BIGINT NOT NULL
);

CREATE TABLE sealed (
    service     TEXT   NOT NULL,
    environment TEXT   NOT NULL,
    number      BIGINT NOT NULL,
    data_key    TEXT   NOT NULL REFERENCES data_key (name),
    box         BYTEA  NOT NULL,
    PRIMARY KEY (service, environment, number),
    FOREIGN KEY (service, environment, number) REFERENCES version (service, environment, number) ON DELETE CASCADE
);

CREATE TABLE rotation (
    id          TEXT   NOT NULL PRIMARY KEY CHECK (id <> ''),
    place       BIGINT NOT NULL, -- order of writing, for those that began at the same moment
    service     TEXT   NOT NULL,
    environment TEXT   NOT NULL,
    machine     BIGINT NOT NULL,
    kind        TEXT   NOT NULL CHECK (kind IN ('scheduled', 'manual', 'set', 'first', 'spare', 'emergency')),
    state       TEXT   NOT NULL CHECK (state IN (
        'planned', 'issuing', 'unknown', 'waiting_key', 'proving', 'staging', 'distributing', 'soaking',
        'quieting', 'retiring', 'rolling_back', 'undoing', 'stopped', 'done', 'rolled_back', 'superseded')),
    started_ms  BIGINT NOT NULL,
    doc         TEXT   NOT NULL,
    FOREIGN KEY (service, environment) REFERENCES credential (service, environment) ON DELETE CASCADE
);
CREATE UNIQUE INDEX rotation_open ON rotation (service, environment)
    WHERE state NOT IN ('done', 'rolled_back', 'superseded');
CREATE INDEX rotation_credential ON rotation (service, environment, started_ms, place);
CREATE INDEX rotation_started ON rotation (started_ms, place);
CREATE INDEX rotation_place ON rotation (place);

CREATE TABLE retirement (
    service     TEXT   NOT NULL,
    environment TEXT   NOT NULL,
    number      BIGINT NOT NULL,
    state       TEXT   NOT NULL CHECK (state IN (
        'orphan', 'retired', 'disabling', 'disabled', 'revoking', 'revoked', 'revoke_unproven', 'superseded', 'void')),
    ended_ms    BIGINT NOT NULL,
    doc         TEXT   NOT NULL,
    PRIMARY KEY (service, environment, number),
    FOREIGN KEY (service, environment, number) REFERENCES version (service, environment, number) ON DELETE CASCADE
);
CREATE INDEX retirement_open ON retirement (service, environment, number) WHERE ended_ms = 0;

CREATE TABLE token (
    name TEXT NOT NULL PRIMARY KEY CHECK (name <> ''),
    hash TEXT NOT NULL UNIQUE CHECK (hash <> ''),
    doc  TEXT NOT NULL
);

CREATE TABLE hold (
    consumer    TEXT   NOT NULL CHECK (consumer <> ''),
    boot        TEXT   NOT NULL,
    service     TEXT   NOT NULL,
    environment TEXT   NOT NULL,
    number      BIGINT NOT NULL,
    kind        TEXT   NOT NULL,
    epoch       BIGINT NOT NULL,
    revision    BIGINT NOT NULL,
    since_ms    BIGINT NOT NULL,
    until_ms    BIGINT NOT NULL,
    unbound     BIGINT NOT NULL CHECK (unbound IN (0, 1)),
    PRIMARY KEY (consumer, boot, service, environment, number),
    FOREIGN KEY (service, environment, number) REFERENCES version (service, environment, number) ON DELETE CASCADE
);
CREATE INDEX hold_version ON hold (service, environment, number);

CREATE TABLE boot (
    consumer TEXT NOT NULL CHECK (consumer <> ''),
    boot     TEXT NOT NULL,
    doc      TEXT NOT NULL,
    PRIMARY KEY (consumer, boot)
);

-- Uses and answers name what the consumer says it used; the credential may be
-- gone by the time the report comes in.
CREATE TABLE boot_use (
    consumer    TEXT   NOT NULL,
    boot        TEXT   NOT NULL,
    service     TEXT   NOT NULL,
    environment TEXT   NOT NULL,
    number      BIGINT NOT NULL,
    doc         TEXT   NOT NULL,
    PRIMARY KEY (consumer, boot, service, environment, number),
    FOREIGN KEY (consumer, boot) REFERENCES boot (consumer, boot) ON DELETE CASCADE
);

CREATE TABLE boot_answer (
    consumer    TEXT NOT NULL,
    boot        TEXT NOT NULL,
    service     TEXT NOT NULL,
    environment TEXT NOT NULL,
    doc         TEXT NOT NULL,
    PRIMARY KEY (consumer, boot, service, environment),
    FOREIGN KEY (consumer, boot) REFERENCES boot (consumer, boot) ON DELETE CASCADE
);

CREATE TABLE ask (
    service     TEXT   NOT NULL,
    environment TEXT   NOT NULL,
    number      BIGINT NOT NULL,
    ok          BIGINT NOT NULL,
    PRIMARY KEY (service, environment, number),
    FOREIGN KEY (service, environment) REFERENCES credential (service, environment) ON DELETE CASCADE
);

CREATE TABLE alert (
    id         TEXT   NOT NULL PRIMARY KEY CHECK (id <> ''),
    state      TEXT   NOT NULL CHECK (state IN ('firing', 'resolved')),
    started_ms BIGINT NOT NULL,
    doc        TEXT   NOT NULL
);
CREATE INDEX alert_started ON alert (state, started_ms);

CREATE TABLE delivery (
    id         TEXT   NOT NULL PRIMARY KEY CHECK (id <> ''),
    created_ms BIGINT NOT NULL,
    next_ms    BIGINT NOT NULL,
    sent_ms    BIGINT NOT NULL,
    doc        TEXT   NOT NULL
);
CREATE INDEX delivery_due ON delivery (next_ms) WHERE sent_ms = 0;

CREATE TABLE audit (
    seq         BIGINT NOT NULL PRIMARY KEY CHECK (seq >= 1),
    at_ms       BIGINT NOT NULL,
    actor       TEXT   NOT NULL,
    action      TEXT   NOT NULL CHECK (action <> ''),
    service     TEXT   NOT NULL,
    environment TEXT   NOT NULL,
    version     BIGINT NOT NULL,
    rotation    TEXT   NOT NULL,
    detail      TEXT   NOT NULL, -- JSON; "" for none
    prev        TEXT   NOT NULL UNIQUE,
    hash        TEXT   NOT NULL
);

CREATE TABLE setting (
    name  TEXT NOT NULL PRIMARY KEY CHECK (name <> ''),
    value TEXT NOT NULL
);

-- due_ms is when a claim may take it: at the end of the claim while there is
-- one, else when it is next due.
CREATE TABLE lease (
    kind     TEXT   NOT NULL CHECK (kind <> ''),
    item     TEXT   NOT NULL,
    owner    TEXT   NOT NULL,
    term     BIGINT NOT NULL CHECK (term >= 0),
    until_ms BIGINT NOT NULL,
    next_ms  BIGINT NOT NULL,
    due_ms   BIGINT NOT NULL,
    PRIMARY KEY (kind, item),
    CHECK ((owner = '' AND until_ms = 0) OR (owner <> '' AND until_ms > 0)),
    CHECK (due_ms = CASE WHEN owner = '' THEN next_ms ELSE until_ms END)
);
CREATE INDEX lease_due ON lease (kind, due_ms, item) WHERE due_ms > 0;

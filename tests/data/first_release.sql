-- The catalog of the first release, as its code made it in SQLite: schema 0001, and no table that says so.
-- Never edited: databases like this one are out there. Made by that release's `Catalog.open` on a new file, and
-- SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY rowid
CREATE TABLE clock (
    id INTEGER NOT NULL,
    value INTEGER NOT NULL,
    PRIMARY KEY (id)
);
CREATE TABLE stems (
    "row" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id VARCHAR(32) NOT NULL,
    sha256 VARCHAR(64),
    file_name VARCHAR NOT NULL,
    title VARCHAR NOT NULL,
    instrument VARCHAR,
    track VARCHAR,
    collection VARCHAR,
    tempo_bpm FLOAT,
    "key" VARCHAR,
    format VARCHAR NOT NULL,
    duration_s FLOAT NOT NULL,
    sample_rate INTEGER NOT NULL,
    channels INTEGER NOT NULL,
    warnings JSON NOT NULL,
    state VARCHAR(16) NOT NULL,
    problem JSON,
    windows INTEGER NOT NULL,
    created_at FLOAT NOT NULL,
    seq INTEGER NOT NULL,
    UNIQUE (id),
    UNIQUE (sha256)
);
CREATE INDEX ix_stems_track ON stems (track);
CREATE INDEX ix_stems_state ON stems (state);
CREATE INDEX ix_stems_seq ON stems (seq);
CREATE INDEX ix_stems_collection ON stems (collection);
CREATE INDEX ix_stems_instrument ON stems (instrument);
CREATE TABLE jobs (
    id VARCHAR(32) NOT NULL,
    kind VARCHAR(16) NOT NULL,
    state VARCHAR(16) NOT NULL,
    created_at FLOAT NOT NULL,
    finished_at FLOAT,
    request JSON NOT NULL,
    progress JSON,
    result JSON,
    problem JSON,
    PRIMARY KEY (id)
);
CREATE INDEX ix_jobs_state ON jobs (state);
CREATE TABLE generations (
    generation INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    fingerprint VARCHAR(64) NOT NULL,
    created_at FLOAT NOT NULL
);
CREATE TABLE stem_tags (
    stem_row INTEGER NOT NULL,
    tag VARCHAR NOT NULL,
    PRIMARY KEY (stem_row, tag),
    FOREIGN KEY(stem_row) REFERENCES stems ("row") ON DELETE CASCADE
);
CREATE INDEX ix_stem_tags_tag ON stem_tags (tag);
CREATE TABLE embeddings (
    stem_row INTEGER NOT NULL,
    fingerprint VARCHAR(64) NOT NULL,
    windows BLOB NOT NULL,
    starts_s BLOB NOT NULL,
    embedding BLOB NOT NULL,
    problem JSON,
    PRIMARY KEY (stem_row, fingerprint),
    FOREIGN KEY(stem_row) REFERENCES stems ("row") ON DELETE CASCADE
);
CREATE TABLE job_items (
    job_id VARCHAR(32) NOT NULL,
    position INTEGER NOT NULL,
    file_name VARCHAR NOT NULL,
    stem_row INTEGER,
    created INTEGER NOT NULL,
    problem JSON,
    PRIMARY KEY (job_id, position),
    FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE,
    FOREIGN KEY(stem_row) REFERENCES stems ("row")
);
CREATE TABLE aliases (
    name VARCHAR(16) NOT NULL,
    generation INTEGER NOT NULL,
    previous INTEGER,
    configured VARCHAR(64) NOT NULL,
    PRIMARY KEY (name),
    FOREIGN KEY(generation) REFERENCES generations (generation),
    FOREIGN KEY(previous) REFERENCES generations (generation)
);
INSERT INTO clock (id, value) VALUES (1, 0);

//! A store on a temporary folder with an engine over it.
#![allow(dead_code, reason = "each test file uses a part")]

use arrow::array::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use base::Principal;
use lattice_sql::{Engine, EngineOptions, Error, Outcome, Session, SessionOptions};
use storage::{Store, StoreOptions};

/// An engine and the folder it lives in.
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) store: Store,
    pub(crate) folder: tempfile::TempDir,
}

impl World {
    pub(crate) async fn new() -> World {
        World::with(EngineOptions::default()).await
    }

    pub(crate) async fn with(options: EngineOptions) -> World {
        let folder = tempfile::tempdir().expect("a temporary folder");
        World::open(folder, options).await
    }

    pub(crate) async fn open(folder: tempfile::TempDir, options: EngineOptions) -> World {
        World::built(runtime::Runtime::real(), folder, options).await
    }

    /// On a disk, say, that the test has in its hand.
    pub(crate) async fn on(runtime: runtime::Runtime) -> World {
        World::built(runtime, tempfile::tempdir().expect("a temporary folder"), EngineOptions::default()).await
    }

    async fn built(runtime: runtime::Runtime, folder: tempfile::TempDir, options: EngineOptions) -> World {
        let mut store_options = StoreOptions::new(folder.path().join("data"));
        store_options.lock_timeout_ms = 2_000;
        // Boxed, because the compiler gives up on futures that are nested too deeply.
        let store = Box::pin(Store::open(runtime, store_options)).await.expect("the store opens");
        let engine = Box::pin(Engine::open(store.clone(), options)).await.expect("the engine opens");
        World { engine, store, folder }
    }

    /// Closes and opens again.
    pub(crate) async fn restart(self) -> World {
        self.engine.shutdown().await;
        self.store.shutdown().await.expect("the store closes");
        let World { engine, store, folder } = self;
        drop(engine);
        drop(store);
        World::open(folder, EngineOptions::default()).await
    }

    pub(crate) fn admin(&self) -> Session {
        self.engine.session(Principal::admin(), SessionOptions::default())
    }

    pub(crate) fn user(&self, name: &str) -> Session {
        self.engine.session(Principal::user(name), SessionOptions::default())
    }
}

/// Runs a script; panics on errors.
pub(crate) async fn run(session: &Session, sql: &str) -> Vec<Outcome> {
    match session.run(sql).await {
        Ok(outcomes) => outcomes,
        Err(error) => panic!("{sql}: {} {error} {:?}", error.sqlstate, error.detail),
    }
}

/// The error of a script.
pub(crate) async fn fails(session: &Session, sql: &str) -> Error {
    match try_all(session, sql).await {
        Ok(rows) => panic!("{sql} should fail, gave {rows:?}"),
        Err(error) => error,
    }
}

async fn try_all(session: &Session, sql: &str) -> Result<Vec<String>, Error> {
    let mut last = Vec::new();
    for outcome in session.run(sql).await? {
        last = match outcome {
            Outcome::Rows(rows) => text(&rows.collect().await?),
            other => vec![format!("{other:?}")],
        };
    }
    Ok(last)
}

/// The rows of the last statement, each as `a|b|c`; NULL is `∅`.
pub(crate) async fn rows(session: &Session, sql: &str) -> Vec<String> {
    match try_all(session, sql).await {
        Ok(rows) => rows,
        Err(error) => panic!("{sql}: {} {error} {:?}", error.sqlstate, error.detail),
    }
}

/// Rows as text.
pub(crate) fn text(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::default().with_null("∅");
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<ArrayFormatter<'_>> = batch
            .columns()
            .iter()
            .map(|array| ArrayFormatter::try_new(array, &options).expect("a printable type"))
            .collect();
        for row in 0..batch.num_rows() {
            lines.push(columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join("|"));
        }
    }
    lines
}

//! The database under a golden file: in this process, opened fresh, and disturbed between statements as the
//! configuration says.

use std::collections::{HashMap, HashSet};
use std::fmt;

use arrow::array::RecordBatch;
use arrow_flight::sql::client::FlightSqlServiceClient;
use base::Principal;
use futures::TryStreamExt;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use sql::{Engine, EngineOptions, Outcome, Session, SessionOptions};
use storage::{Store, StoreOptions};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::text;

/// What happens between statements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Configuration {
    /// Every row stays in the row tier.
    RowsOnly,
    /// A flush after each statement.
    ColumnsOnly,
    /// A flush after some statements.
    Mixed,
    /// Closed and opened again after each statement.
    Restart,
    /// Over Flight SQL.
    OverFlight,
}

impl Configuration {
    /// All of them.
    pub(crate) const ALL: [Configuration; 5] =
        [Self::RowsOnly, Self::ColumnsOnly, Self::Mixed, Self::Restart, Self::OverFlight];
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Configuration::RowsOnly => "rows_only",
            Configuration::ColumnsOnly => "columns_only",
            Configuration::Mixed => "mixed",
            Configuration::Restart => "restart",
            Configuration::OverFlight => "over_flight",
        })
    }
}

/// What a statement gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Output {
    /// Number of columns; 0 for a statement without rows.
    pub(crate) columns: usize,
    /// Rows as text.
    pub(crate) rows: Vec<Vec<String>>,
    /// Changed rows.
    pub(crate) affected: u64,
}

/// An error of the database.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// Five characters.
    pub(crate) sqlstate: String,
    /// The primary message.
    pub(crate) message: String,
}

impl Failure {
    /// An error with this code.
    pub(crate) fn new(sqlstate: &str, message: impl Into<String>) -> Self {
        Self { sqlstate: sqlstate.to_owned(), message: message.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.sqlstate, self.message)
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

enum Conversation {
    Direct(Session),
    Wire(Box<FlightSqlServiceClient<Channel>>),
}

struct Open {
    store: Store,
    engine: Engine,
    wire: Option<(String, tokio::task::JoinHandle<()>, tokio::sync::oneshot::Sender<()>)>,
}

/// One database and the sessions on it.
pub(crate) struct Database {
    configuration: Configuration,
    folder: TempDir,
    open: Option<Open>,
    sessions: HashMap<String, Conversation>,
    /// Sessions in a transaction, or with settings or temporary objects: closing would change what they see.
    held: HashSet<String>,
    rng: StdRng,
}

impl Database {
    /// A fresh database.
    pub(crate) async fn open(configuration: Configuration, seed: u64) -> Result<Self, BoxError> {
        let folder = tempfile::tempdir()?;
        let mut database = Self {
            configuration,
            folder,
            open: None,
            sessions: HashMap::new(),
            held: HashSet::new(),
            rng: StdRng::seed_from_u64(seed),
        };
        database.start().await?;
        Ok(database)
    }

    async fn start(&mut self) -> Result<(), BoxError> {
        let mut options = StoreOptions::new(self.folder.path().join("data"));
        // Rows move only when the configuration says so.
        options.flush_interval_ms = 3_600_000;
        options.lock_timeout_ms = 1_000;
        options.row_tier_bytes = 64 << 20;
        options.cache_bytes = 32 << 20;
        let store = Store::open(runtime::Runtime::real(), options).await?;
        let files = self.folder.path().join("files");
        std::fs::create_dir_all(&files)?;
        let engine_options = EngineOptions {
            target_partitions: Some(2),
            copy_folders: vec![files],
            data_folder: Some(self.folder.path().join("data")),
            ..EngineOptions::default()
        };
        let engine = Engine::open(store.clone(), engine_options).await?;
        let wire = if self.configuration == Configuration::OverFlight {
            let options = flight::FlightOptions {
                listeners: vec![flight::Address::Tcp(([127, 0, 0, 1], 0).into())],
                ..flight::FlightOptions::default()
            };
            let server = flight::Server::bind(options, engine.clone()).await?;
            let address = match server.addresses().into_iter().next() {
                Some(flight::Address::Tcp(address)) => address.to_string(),
                _ => return Err("the server listens nowhere".into()),
            };
            let (stop, stopped) = tokio::sync::oneshot::channel();
            let task = tokio::spawn(async move {
                let served = server.run(async move {
                    // A dropped sender means stop as well.
                    let _dropped = stopped.await;
                });
                if let Err(error) = served.await {
                    eprintln!("the Flight SQL server failed: {error}");
                }
            });
            Some((address, task, stop))
        } else {
            None
        };
        self.open = Some(Open { store, engine, wire });
        Ok(())
    }

    async fn stop(&mut self) -> Result<(), BoxError> {
        for (_, conversation) in self.sessions.drain() {
            if let Conversation::Direct(session) = conversation {
                session.close().await;
            }
        }
        self.held.clear();
        if let Some(Open { store, engine, wire }) = self.open.take() {
            if let Some((_, task, stop)) = wire {
                let _stopped = stop.send(());
                task.await?;
            }
            engine.shutdown().await;
            drop(engine);
            store.shutdown().await?;
        }
        Ok(())
    }

    /// Closes for good.
    pub(crate) async fn close(mut self) -> Result<(), BoxError> {
        self.stop().await
    }

    /// Runs a statement in the named session, then does what the configuration does between statements.
    pub(crate) async fn run(&mut self, name: &str, sql: &str) -> Result<Output, Failure> {
        let broken = |error: BoxError| Failure::new("XX000", error.to_string());
        self.session(name).await.map_err(broken)?;
        let found = match self.sessions.get_mut(name) {
            Some(Conversation::Direct(session)) => direct(session, sql).await,
            Some(Conversation::Wire(client)) => over_wire(client, sql).await,
            None => Err(Failure::new("XX000", "no session")),
        };
        self.note_state(name, sql);
        self.disturb().await.map_err(broken)?;
        found
    }

    async fn session(&mut self, name: &str) -> Result<(), BoxError> {
        if self.sessions.contains_key(name) {
            return Ok(());
        }
        let open = self.open.as_ref().ok_or("the database is closed")?;
        let conversation = match &open.wire {
            None => Conversation::Direct(open.engine.session(Principal::admin(), SessionOptions::default())),
            Some((address, ..)) => {
                let channel = Endpoint::from_shared(format!("http://{address}"))?.connect().await?;
                let mut client = FlightSqlServiceClient::new(channel);
                client.handshake("admin", "").await?;
                Conversation::Wire(Box::new(client))
            }
        };
        self.sessions.insert(name.to_owned(), conversation);
        Ok(())
    }

    fn note_state(&mut self, name: &str, sql: &str) {
        let words: Vec<String> =
            sql.split_whitespace().take(3).map(|word| word.trim_end_matches(';').to_uppercase()).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["BEGIN", ..]
            | ["START", "TRANSACTION", ..]
            | ["SET" | "PREPARE", ..]
            | ["CREATE", "TEMP" | "TEMPORARY", ..] => {
                self.held.insert(name.to_owned());
            }
            ["COMMIT" | "END" | "ABORT", ..] | ["ROLLBACK"] | ["RESET" | "DISCARD", "ALL"] => {
                self.held.remove(name);
            }
            _ => {}
        }
    }

    async fn disturb(&mut self) -> Result<(), BoxError> {
        let flush = match self.configuration {
            Configuration::RowsOnly | Configuration::OverFlight => false,
            Configuration::ColumnsOnly => true,
            Configuration::Mixed => self.rng.random_bool(0.4),
            Configuration::Restart => {
                if self.held.is_empty() {
                    self.stop().await?;
                    self.start().await?;
                }
                false
            }
        };
        if flush && let Some(open) = &self.open {
            open.store.flush(None).await?;
        }
        Ok(())
    }
}

async fn direct(session: &Session, sql: &str) -> Result<Output, Failure> {
    let failed = |error: sql::Error| Failure::new(error.sqlstate.as_str(), error.message);
    let mut output = Output::default();
    for outcome in session.run(sql).await.map_err(failed)? {
        output = match outcome {
            Outcome::Rows(rows) => {
                let columns = rows.schema.fields().len();
                let batches: Vec<RecordBatch> = rows.collect().await.map_err(failed)?;
                Output { columns, rows: batches.iter().flat_map(text::rows).collect(), affected: 0 }
            }
            Outcome::Affected { rows, .. } => Output { affected: rows, ..Output::default() },
            Outcome::Done { .. } => Output::default(),
        };
    }
    Ok(output)
}

async fn over_wire(client: &mut FlightSqlServiceClient<Channel>, sql: &str) -> Result<Output, Failure> {
    let failed = |error: arrow_flight::error::FlightError| match &error {
        arrow_flight::error::FlightError::Tonic(status) => {
            let text = |name: &str| status.metadata().get(name).and_then(|value| Some(value.to_str().ok()?.to_owned()));
            let binary = |name: &str| {
                let bytes = status.metadata().get_bin(name)?.to_bytes().ok()?;
                String::from_utf8(bytes.to_vec()).ok()
            };
            Failure {
                sqlstate: text("lattice-sqlstate").unwrap_or_else(|| "08006".to_owned()),
                message: binary("lattice-message-bin").unwrap_or_else(|| status.message().to_owned()),
            }
        }
        _ => Failure::new("08006", error.to_string()),
    };
    let info = client.execute(sql.to_owned(), None).await.map_err(failed)?;
    let columns = if info.schema.is_empty() {
        0
    } else {
        let schema = info.clone().try_decode_schema().map_err(|error| Failure::new("08P01", error.to_string()))?;
        schema.fields().len()
    };
    let mut output = Output { columns, ..Output::default() };
    for endpoint in info.endpoint {
        let Some(ticket) = endpoint.ticket else { continue };
        let mut stream = client.do_get(ticket).await.map_err(failed)?;
        while let Some(batch) = stream.try_next().await.map_err(failed)? {
            output.rows.extend(text::rows(&batch));
        }
    }
    if columns == 0 {
        output.affected = u64::try_from(info.total_records).unwrap_or_default();
    }
    Ok(output)
}

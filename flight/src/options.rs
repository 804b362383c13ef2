//! How the wire is configured.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::auth::{Authenticator, TrustEveryone};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP address; port 0 lets the system choose.
    Tcp(SocketAddr),
    /// A Unix domain socket; a stale file is replaced. Never with TLS: who may open the file may connect.
    Unix(PathBuf),
}

/// Certificates, as PEM text.
#[derive(Clone)]
pub struct TlsOptions {
    /// The server's certificate, followed by intermediate ones.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// Certificates that sign clients' certificates. When present, clients must have one, unless `client_optional`.
    pub client_ca: Option<String>,
    /// Lets clients without a certificate in although `client_ca` is set.
    pub client_optional: bool,
}

impl std::fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of logs.
        f.debug_struct("TlsOptions").field("client_ca", &self.client_ca.is_some()).finish_non_exhaustive()
    }
}

/// Bounds, each with its unit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open sessions.
    pub sessions_max: usize,
    /// Open connections over all listeners.
    pub connections_max: usize,
    /// Concurrent requests of one connection.
    pub streams_per_connection_max: u32,
    /// Prepared statements of one session.
    pub statements_per_session_max: usize,
    /// Largest message from a client, in bytes.
    pub message_bytes_max: usize,
    /// Largest headers of one request, in bytes; the JDBC driver sends unknown URL properties as headers.
    pub header_bytes_max: u32,
    /// Largest batch from a client after decompression, in bytes.
    pub batch_bytes_max: usize,
    /// Largest message to a client, in bytes of Arrow data.
    pub result_message_bytes_max: usize,
    /// Results waiting to be fetched.
    pub results_max: usize,
    /// Memory of rows waiting to be fetched, in bytes.
    pub results_bytes_max: usize,
    /// Planned results whose row versions are held until they are fetched.
    pub pins_max: usize,
    /// Endpoints of one result.
    pub endpoints_max: usize,
    /// Rows of one endpoint at least, about, when a result has several.
    pub endpoint_rows_min: usize,
    /// Statements of `PollFlightInfo` that are remembered, running ones included.
    pub jobs_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions_max: 10_000,
            connections_max: 10_000,
            streams_per_connection_max: 1024,
            statements_per_session_max: 10_000,
            message_bytes_max: 256 << 20,
            header_bytes_max: 64 << 10,
            batch_bytes_max: 512 << 20,
            result_message_bytes_max: 3 << 20,
            results_max: 4096,
            results_bytes_max: 256 << 20,
            pins_max: 256,
            // As many as this machine can serve at once, and two at least, because the readers may be elsewhere.
            endpoints_max: std::thread::available_parallelism().map_or(1, std::num::NonZero::get).clamp(2, 16),
            endpoint_rows_min: 256 << 10,
            jobs_max: 1000,
        }
    }
}

/// Everything [`crate::serve`] needs besides the engine.
#[derive(Clone, Debug)]
pub struct FlightOptions {
    /// Where to listen.
    pub listeners: Vec<Address>,
    /// TLS for the TCP listeners; plain text when absent.
    pub tls: Option<TlsOptions>,
    /// Who may connect.
    pub auth: Arc<dyn Authenticator>,
    /// Bounds.
    pub limits: Limits,
    /// A session unused for longer ends, and what is open in it is rolled back.
    pub session_idle: Duration,
    /// How long a result waits to be fetched.
    pub result_ttl: Duration,
    /// How long a planned query holds the row versions it will read while nobody fetches it. After that its ticket brings it
    /// back.
    pub result_pin: Duration,
    /// How often an idle connection is probed, so that load balancers keep it and dead peers are noticed.
    pub keepalive: Duration,
    /// How long running requests may go on after the shutdown began.
    pub drain: Duration,
    /// The version that `GetSqlInfo` reports.
    pub version: String,
    /// What `GetSqlInfo` reports as the statement timeout; zero means none.
    pub statement_timeout: Duration,
    /// What `GetSqlInfo` reports as the idle transaction timeout; zero means none.
    pub transaction_timeout: Duration,
}

impl Default for FlightOptions {
    fn default() -> Self {
        Self {
            listeners: vec![Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 50051)))],
            tls: None,
            auth: Arc::new(TrustEveryone),
            limits: Limits::default(),
            session_idle: Duration::from_secs(3600),
            result_ttl: Duration::from_secs(300),
            result_pin: Duration::from_secs(30),
            keepalive: Duration::from_secs(20),
            drain: Duration::from_secs(30),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            statement_timeout: Duration::ZERO,
            transaction_timeout: Duration::ZERO,
        }
    }
}

//! `lattice serve`: opens the database, listens, and on a signal closes everything in order.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use sql::{Engine, EngineOptions};
use storage::{OnFatal, Store, StoreOptions};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::ServeArgs;
use crate::config::Config;
use crate::http::{Parts, Phase, Status};
use crate::{http, logs};

/// Rows a query handles at a time.
const BATCH_ROWS: usize = 8192;

/// Longest last flush. What it does not reach lies in the checkpoint all the same.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(120);

/// Runs the server until a signal.
pub async fn run(args: &ServeArgs) -> ExitCode {
    match serve(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("lattice: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Password of the user `admin`, when one is set.
fn admin_password() -> Result<Option<String>, String> {
    match std::env::var("LATTICE_ADMIN_PASSWORD") {
        Ok(password) if password.is_empty() => {
            Err("LATTICE_ADMIN_PASSWORD is set but empty: unset it or give a password".to_owned())
        }
        Ok(password) => Ok(Some(password)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err("LATTICE_ADMIN_PASSWORD is not valid UTF-8".to_owned()),
    }
}

async fn serve(args: &ServeArgs) -> Result<(), String> {
    let config = args.load().map_err(|error| error.to_string())?;
    let password = admin_password()?;
    logs::start(&config.log)?;
    let (flight_address, http_address) = config.addresses(password.is_some()).map_err(|error| error.to_string())?;
    let tls = read_tls(&config)?;

    // The ports are tried before the data folder is touched: a second server by mistake fails here, without traces.
    drop(bind("flight", flight_address).await?);
    let http_listener = match http_address {
        Some(address) => Some(bind("http", address).await?),
        None => None,
    };
    let http_address = http_listener.as_ref().map(local).transpose()?;

    let about = vec![("data", config.listen.data.clone()), ("flight", flight_address.to_string())];
    let door = Arc::new(Door { password });
    let status = Status::new(about, {
        let door = Arc::clone(&door);
        move |user, password| door.opens(user, password)
    });
    let (stop_http, http_stopped) = tokio::sync::watch::channel(false);
    let pages = http_listener
        .map(|listener| tokio::spawn(pages(listener, tls.clone(), http::router(status.clone()), http_stopped)));

    let started = Instant::now();
    let store = open_store(&config).await?;
    let engine = Engine::open(store.clone(), engine_options(&config)).await.map_err(|error| describe(&error))?;
    let wire =
        flight::Server::bind(flight_options(&config, flight_address, tls.as_ref(), Arc::clone(&door)), engine.clone())
            .await
            .map_err(|error| describe(&error))?;
    let flight_address = match wire.addresses().first() {
        Some(flight::Address::Tcp(address)) => *address,
        _ => flight_address,
    };
    let service = wire.service();
    status.set(Phase::Serving(Parts { engine: engine.clone(), store: store.clone(), wire: service.clone() }));
    banner(&config, flight_address, http_address, tls.is_some(), door.password.is_some(), started.elapsed());

    let (stop_flight, mut flight_stopped) = tokio::sync::watch::channel(false);
    let wire = tokio::spawn(wire.run(async move {
        // An error means that the sender is gone, which also means stop.
        let _closed = flight_stopped.wait_for(|stop| *stop).await;
    }));

    let reason = wait_for_signal().await?;
    tracing::info!(reason, "stopping: no new statements");
    println!("\nStopping ({reason}): finishing what runs, then flushing. A second {reason} stops at once.");
    tokio::spawn(async {
        if let Ok(reason) = wait_for_signal().await {
            eprintln!("lattice: {reason} again: stopping at once; the next start recovers from the log");
            std::process::exit(130);
        }
    });
    status.set(Phase::Draining(Parts { engine: engine.clone(), store: store.clone(), wire: service }));
    let _closed = stop_flight.send(true);
    let waiting = engine.queries().len();
    if waiting > 0 {
        tracing::info!(
            statements = waiting,
            limit_s = config.listen.drain_timeout.0.as_secs(),
            "waiting for running statements"
        );
    }
    match wire.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the Flight SQL listener ended with an error"),
        Err(error) => tracing::error!(%error, "the Flight SQL listener failed"),
    }
    for query in engine.queries() {
        tracing::warn!(id = query.id, "cancelling a statement that did not finish in time");
        engine.cancel(query.id);
    }
    engine.shutdown().await;
    // Rows that are flushed now need no replay at the next start. A store that cannot take them does not hold up the end.
    match tokio::time::timeout(FLUSH_TIMEOUT, store.flush(None)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(error = describe(&error), "rows stay in the checkpoint: the last flush failed")
        }
        Err(_) => tracing::warn!(
            limit_s = FLUSH_TIMEOUT.as_secs(),
            "rows stay in the checkpoint: the last flush took too long"
        ),
    }
    store.shutdown().await.map_err(|error| {
        format!("the store did not close cleanly, the next start recovers from the log: {}", describe(&error))
    })?;
    let _closed = stop_http.send(true);
    if let Some(pages) = pages {
        pages.abort();
    }
    tracing::info!("stopped");
    println!("Stopped.");
    Ok(())
}

/// Who may come in: with a password, the user `admin` who knows it; without one, everybody, as `admin`.
#[derive(Debug)]
struct Door {
    password: Option<String>,
}

impl Door {
    fn opens(&self, user: &str, given: &str) -> bool {
        match &self.password {
            None => true,
            // Compared without telling by its duration where the texts differ, and whatever the user's name.
            Some(password) => {
                // Digests have one length, so that not even the password's length shows.
                let digest = |text: &str| aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
                let (wanted, given) = (digest(password), digest(given));
                let right = aws_lc_rs::constant_time::verify_slices_are_equal(wanted.as_ref(), given.as_ref()).is_ok();
                right & (user == base::Principal::admin().name())
            }
        }
    }
}

#[async_trait::async_trait]
impl flight::Authenticator for Door {
    async fn password(&self, user: &str, password: &str) -> Result<base::Principal, flight::Refusal> {
        if self.opens(user, password) { Ok(base::Principal::admin()) } else { Err(flight::Refusal::WrongPassword) }
    }

    fn anonymous(&self) -> Option<base::Principal> {
        self.password.is_none().then(base::Principal::admin)
    }
}

fn flight_options(config: &Config, address: SocketAddr, tls: Option<&Tls>, door: Arc<Door>) -> flight::FlightOptions {
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let socket = &config.listen.socket;
    let socket = (!socket.is_empty()).then(|| flight::Address::Unix(PathBuf::from(socket)));
    flight::FlightOptions {
        listeners: [flight::Address::Tcp(address)].into_iter().chain(socket).collect(),
        tls: tls.map(|tls| flight::TlsOptions {
            certificate: String::from_utf8_lossy(&tls.cert).into_owned(),
            key: String::from_utf8_lossy(&tls.key).into_owned(),
            client_ca: tls.client_ca.as_ref().map(|pem| String::from_utf8_lossy(pem).into_owned()),
            client_optional: false,
        }),
        auth: door,
        limits: flight::Limits {
            sessions_max: size(config.limits.sessions),
            message_bytes_max: size(config.limits.message.0),
            ..flight::Limits::default()
        },
        session_idle: config.limits.session_idle.0,
        keepalive: config.listen.keepalive.0,
        drain: config.listen.drain_timeout.0,
        statement_timeout: config.sql.statement_timeout.0,
        transaction_timeout: config.sql.idle_transaction_timeout.0,
        ..flight::FlightOptions::default()
    }
}

pub(crate) async fn open_store(config: &Config) -> Result<Store, String> {
    let data = PathBuf::from(&config.listen.data);
    let mut options = store_options(config);
    options.on_fatal = Some(OnFatal(Arc::new(|reason| {
        tracing::error!(reason, "the log cannot be written: stopping at once");
        eprintln!(
            "lattice: the log cannot be written: {reason}\nlattice: stopping at once; every commit that was acknowledged is on disk"
        );
        std::process::exit(1);
    })));
    let opening = Store::open(runtime::Runtime::real(), options);
    tokio::pin!(opening);
    let started = Instant::now();
    loop {
        tokio::select! {
            opened = &mut opening => return opened.map_err(|error| describe(&error)),
            () = tokio::time::sleep(Duration::from_secs(2)) => {
                tracing::info!(seconds = started.elapsed().as_secs(), data = %data.display(), "opening the database: reading the checkpoint and replaying the log");
            }
        }
    }
}

pub(crate) fn store_options(config: &Config) -> StoreOptions {
    let storage = &config.storage;
    let size = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX);
    let millis = |span: crate::config::Span| u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX);
    let mut options = StoreOptions::new(PathBuf::from(&config.listen.data));
    options.columns_url = (!storage.columns.is_empty()).then(|| storage.columns.clone());
    options.row_tier_bytes = size(storage.row_tier.0);
    options.cache_bytes = size(storage.cache.0);
    options.flush_bytes = size(storage.flush_bytes.0);
    options.flush_interval_ms = millis(storage.flush_interval);
    options.write_stall_timeout_ms = millis(storage.write_stall_timeout);
    options.segment_bytes = storage.journal_segment.0;
    options.low_water_bytes = storage.low_water.0;
    options.recent_bytes = size(storage.recent.0);
    options.clock_jump_ms = millis(storage.clock_jump);
    options.merge_files = size(storage.merge_files);
    options.dropped_retention_ms = millis(storage.dropped_retention);
    options.log_max_bytes = storage.log_max.0;
    options.lock_timeout_ms = millis(storage.lock_timeout);
    options.transaction_spill_bytes = size(storage.spill_bytes.0);
    options
}

pub(crate) fn engine_options(config: &Config) -> EngineOptions {
    let data = PathBuf::from(&config.listen.data);
    EngineOptions {
        memory_limit: usize::try_from(config.sql.memory.0).unwrap_or(usize::MAX),
        spill_folder: Some(data.join("tmp")),
        target_partitions: usize::try_from(config.sql.parallelism).ok().filter(|count| *count > 0),
        batch_size: BATCH_ROWS,
        copy_folders: config.sql.copy_folders.iter().map(PathBuf::from).collect(),
        data_folder: Some(data),
        bulk_rows: usize::try_from(config.sql.bulk_rows).unwrap_or(usize::MAX),
        row_bytes_max: usize::try_from(config.limits.row.0).unwrap_or(usize::MAX),
        statement_timeout: config.sql.statement_timeout.0,
        slow_statement: config.sql.slow_statement.0,
        idle_transaction_timeout: config.sql.idle_transaction_timeout.0,
        ..EngineOptions::default()
    }
}

/// A certificate chain and its key, as PEM.
#[derive(Clone)]
pub struct Tls {
    cert: Vec<u8>,
    key: Vec<u8>,
    /// Of Flight SQL clients.
    client_ca: Option<Vec<u8>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of logs.
        f.write_str("Tls")
    }
}

fn read_tls(config: &Config) -> Result<Option<Tls>, String> {
    if !config.has_tls() {
        return Ok(None);
    }
    let read =
        |key: &str, path: &str| std::fs::read(path).map_err(|error| format!("cannot read `{key}` {path}: {error}"));
    let client_ca = match config.listen.client_ca.as_str() {
        "" => None,
        path => Some(read("client_ca", path)?),
    };
    let tls = Tls {
        cert: read("tls_cert", &config.listen.tls_cert)?,
        key: read("tls_key", &config.listen.tls_key)?,
        client_ca,
    };
    // A bad pair is found here, before anything is opened.
    tls_config(&tls)?;
    check_client_ca(&tls)?;
    Ok(Some(tls))
}

/// Certificates that cannot be read would let nobody in.
fn check_client_ca(tls: &Tls) -> Result<(), String> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let Some(pem) = &tls.client_ca else { return Ok(()) };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate =
            certificate.map_err(|error| format!("`client_ca` holds no certificates in PEM form: {error}"))?;
        roots.add(certificate).map_err(|error| format!("a certificate in `client_ca` cannot be used: {error}"))?;
    }
    if roots.is_empty() { Err("`client_ca` holds no certificates in PEM form".to_owned()) } else { Ok(()) }
}

fn tls_config(tls: &Tls) -> Result<Arc<rustls::ServerConfig>, String> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let chain = CertificateDer::pem_slice_iter(&tls.cert)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("`tls_cert` holds no certificates in PEM form: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(&tls.key)
        .map_err(|error| format!("`tls_key` holds no private key in PEM form: {error}"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| format!("`tls_cert` and `tls_key` do not fit together: {error}"))?;
    Ok(Arc::new(config))
}

async fn pages(
    listener: TcpListener,
    tls: Option<Tls>,
    router: axum::Router,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) {
    let stop = async move {
        let _closed = stopped.wait_for(|stop| *stop).await;
    };
    let router = router.into_make_service_with_connect_info::<http::Peer>();
    let served = match tls.as_ref().map(tls_config) {
        None => axum::serve(listener, router).with_graceful_shutdown(stop).await,
        Some(Ok(config)) => {
            let listener = TlsListener::new(listener, config);
            axum::serve(listener, router).with_graceful_shutdown(stop).await
        }
        Some(Err(message)) => Err(std::io::Error::other(message)),
    };
    if let Err(error) = served {
        tracing::error!(%error, "the HTTP listener ended");
    }
}

/// Handshakes that may be under way at once; more wait in the kernel's queue.
const HANDSHAKES_MAX: usize = 64;
/// A peer that does not finish its handshake in this time is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

type TlsStream = tokio_rustls::server::TlsStream<tokio::net::TcpStream>;

/// Accepts TLS connections; a slow handshake holds up nobody else.
struct TlsListener {
    ready: tokio::sync::mpsc::Receiver<(TlsStream, SocketAddr)>,
    address: std::io::Result<SocketAddr>,
}

impl TlsListener {
    fn new(listener: TcpListener, config: Arc<rustls::ServerConfig>) -> Self {
        let address = listener.local_addr();
        let (sender, ready) = tokio::sync::mpsc::channel(HANDSHAKES_MAX);
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        tokio::spawn(async move {
            let permits = Arc::new(tokio::sync::Semaphore::new(HANDSHAKES_MAX));
            while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
                let (stream, peer) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!(%error, "an HTTP connection was not accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                tokio::spawn(async move {
                    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
                    drop(permit);
                    if let Ok(Ok(stream)) = handshake {
                        let _closed = sender.send((stream, peer)).await;
                    }
                });
            }
        });
        Self { ready, address }
    }
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.address.as_ref().copied().map_err(|error| std::io::Error::new(error.kind(), error.to_string()))
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for http::Peer {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self(*stream.remote_addr())
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for http::Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        Self(*stream.remote_addr())
    }
}

async fn bind(key: &str, address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|error| {
        let hint = if error.kind() == std::io::ErrorKind::AddrInUse {
            format!("; another server may be running: stop it, or choose another port with --{key} {}:0", address.ip())
        } else {
            String::new()
        };
        format!("cannot listen on {address} for {key}: {error}{hint}")
    })
}

fn local(listener: &TcpListener) -> Result<SocketAddr, String> {
    listener.local_addr().map_err(|error| format!("the listening address cannot be read: {error}"))
}

async fn wait_for_signal() -> Result<&'static str, String> {
    let handler = |kind| signal(kind).map_err(|error| format!("signals cannot be received: {error}"));
    let mut terminate = handler(SignalKind::terminate())?;
    let mut interrupt = handler(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

/// An error and its causes in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let part = next.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = next.source();
    }
    text
}

fn banner(config: &Config, flight: SocketAddr, http: Option<SocketAddr>, tls: bool, password: bool, took: Duration) {
    let scheme = if tls { "grpc+tls" } else { "grpc" };
    let data = std::fs::canonicalize(&config.listen.data).unwrap_or_else(|_| PathBuf::from(&config.listen.data));
    let mut lines = vec![
        format!("LatticeDB {} is ready (opened in {:.1} s)", env!("CARGO_PKG_VERSION"), took.as_secs_f64()),
        String::new(),
        format!("  data     {}", data.display()),
    ];
    if !config.storage.columns.is_empty() {
        lines.push(format!("  columns  {}", config.storage.columns));
    }
    lines.push(format!("  flight   {scheme}://{flight}   (Flight SQL, ADBC, JDBC)"));
    if !config.listen.socket.is_empty() {
        lines.push(format!("  socket   grpc+unix://{}", config.listen.socket));
    }
    match http {
        Some(http) => lines.push(format!(
            "  http     {}://{http}   (status page, /health, /metrics)",
            if tls { "https" } else { "http" }
        )),
        None => lines.push("  http     off".to_owned()),
    }
    lines.push(match (password, flight.ip().is_loopback()) {
        (true, _) => "  access   user `admin` with the password in LATTICE_ADMIN_PASSWORD".to_owned(),
        (false, true) => "  access   anyone on this machine is `admin`, with any credentials or none: LATTICE_ADMIN_PASSWORD is not set".to_owned(),
        (false, false) => "  access   ANYONE WHO REACHES THIS PORT IS `admin`: started with --insecure and without a password".to_owned(),
    });
    lines.push(String::new());
    let host =
        if flight.port() == 50051 && flight.ip().is_loopback() { String::new() } else { format!(" --host {flight}") };
    lines.push(format!("  Try:     lattice sql{host}"));
    lines.push(format!("  Python:  adbc_driver_flightsql.dbapi.connect(\"{scheme}://{flight}\")"));
    lines.push("  Stop:    Ctrl-C".to_owned());
    println!("{}", lines.join("\n"));
    tracing::info!(%flight, http = http.map(tracing::field::display), data = %data.display(), tls, password, "ready");
}

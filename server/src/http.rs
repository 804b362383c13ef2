//! The HTTP side: `/health`, `/ready`, `/metrics` and a status page.
//!
//! It starts before recovery, so that a supervisor can tell a server that replays its log from one that is gone.
//! When a password is set, the status page and the metrics ask for it; health and readiness never do. Guessing is slowed
//! down as on the wire. Test: `guesses_wait_their_turn`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use parking_lot::RwLock;
use sql::Engine;
use storage::Store;

use crate::metrics::{self, Process, Sources};

/// What the pages look at.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The SQL engine.
    pub engine: Engine,
    /// The store.
    pub store: Store,
    /// The wire.
    pub wire: flight::Service,
}

/// Where the server is in its life.
#[derive(Clone)]
pub enum Phase {
    /// Reading the checkpoint and replaying the log.
    Starting,
    /// Answering.
    Serving(Parts),
    /// Finishing what runs; new work is refused.
    Draining(Parts),
}

impl std::fmt::Debug for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Phase::Starting => "starting",
            Phase::Serving(..) => "serving",
            Phase::Draining(..) => "draining",
        })
    }
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Shared by the handlers.
#[derive(Clone)]
pub struct Status {
    phase: Arc<RwLock<Phase>>,
    check: Arc<dyn Fn(&str, &str) -> bool + Send + Sync>,
    throttle: Arc<flight::Throttle>,
    started: Instant,
    started_at: SystemTime,
    about: Arc<Vec<(&'static str, String)>>,
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Status").field("about", &self.about).finish_non_exhaustive()
    }
}

impl Status {
    /// `about` is shown on the status page; `check` says whether a user name and password open it.
    pub fn new(about: Vec<(&'static str, String)>, check: impl Fn(&str, &str) -> bool + Send + Sync + 'static) -> Self {
        Self {
            phase: Arc::new(RwLock::new(Phase::Starting)),
            check: Arc::new(check),
            throttle: Arc::default(),
            started: Instant::now(),
            started_at: SystemTime::now(),
            about: Arc::new(about),
        }
    }

    /// Moves on.
    pub fn set(&self, phase: Phase) {
        *self.phase.write() = phase;
    }

    fn phase(&self) -> Phase {
        self.phase.read().clone()
    }

    /// Lets a request through to what needs the password, or gives the answer that refuses it.
    async fn admit(&self, headers: &HeaderMap, peer: Peer) -> Result<(), Response> {
        use base64::Engine as _;
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Basic "))
            .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok())
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .and_then(|text| text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned())));
        let Some((user, password)) = given else {
            // Browsers ask without a password first, which is no guess.
            return if (self.check)("", "") { Ok(()) } else { Err(ask()) };
        };
        let peer = Some(peer.0.ip());
        if let Err(error) = self.throttle.admit(&user, peer).await {
            return Err((StatusCode::TOO_MANY_REQUESTS, format!("{error}\n")).into_response());
        }
        if (self.check)(&user, &password) {
            self.throttle.succeeded(&user, peer);
            return Ok(());
        }
        let failures = self.throttle.failed(&user, peer);
        // Quoted and cut, because a stranger chose it.
        let user: String = user.chars().take(64).collect();
        let outcome = "wrong user name or password";
        tracing::warn!(target: "audit", ?user, peer = ?peer, outcome, failures, "log-in over HTTP");
        Err(ask())
    }
}

/// The routes.
pub fn router(status: Status) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/health", get(|| async { "ok\n" }))
        .route("/ready", get(ready))
        .route("/metrics", get(scrape))
        .with_state(status)
}

async fn ready(State(status): State<Status>) -> Response {
    match status.phase() {
        Phase::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response(),
        Phase::Serving(..) => "ready\n".into_response(),
        Phase::Draining(..) => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response(),
    }
}

fn ask() -> Response {
    let headers = [(header::WWW_AUTHENTICATE, "Basic realm=\"LatticeDB\"")];
    (StatusCode::UNAUTHORIZED, headers, "user name and password needed\n").into_response()
}

async fn scrape(State(status): State<Status>, ConnectInfo(peer): ConnectInfo<Peer>, headers: HeaderMap) -> Response {
    if let Err(refused) = status.admit(&headers, peer).await {
        return refused;
    }
    let (Phase::Serving(parts) | Phase::Draining(parts)) = status.phase() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response();
    };
    let sources = Sources {
        engine: parts.engine.metrics(),
        store: parts.store.stats(),
        wire: parts.wire.metrics(),
        started_at: status.started_at,
        process: Process::read(),
    };
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics::render(&sources)).into_response()
}

async fn page(State(status): State<Status>, ConnectInfo(peer): ConnectInfo<Peer>, headers: HeaderMap) -> Response {
    if let Err(refused) = status.admit(&headers, peer).await {
        return refused;
    }
    let (word, sources) = match status.phase() {
        Phase::Starting => ("starting", None),
        Phase::Serving(parts) => ("ready", Some(parts)),
        Phase::Draining(parts) => ("stopping", Some(parts)),
    };
    let mut body = String::new();
    section(&mut body, "Server", {
        let mut rows = vec![
            ("state", word.to_owned()),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("up", format!("{} s", status.started.elapsed().as_secs())),
        ];
        rows.extend(status.about.iter().cloned());
        rows
    });
    if let Some(Parts { engine, store, wire }) = sources {
        let (counts, stats, requests) = (engine.metrics(), store.stats(), wire.metrics());
        section(
            &mut body,
            "Work",
            vec![
                ("sessions", requests.sessions.to_string()),
                ("requests", format!("{} ({} failed)", requests.requests, requests.failures)),
                (
                    "statements",
                    format!("{} ({} failed, {} cancelled)", counts.statements, counts.failed, counts.cancelled),
                ),
                ("rows", format!("{} sent, {} written", counts.rows_sent, counts.rows_written)),
                (
                    "transactions",
                    format!(
                        "{} committed, {} rolled back, {} conflicts",
                        counts.commits, counts.rollbacks, counts.conflicts
                    ),
                ),
                ("query memory", bytes(counts.memory_used)),
            ],
        );
        section(
            &mut body,
            "Storage",
            vec![
                (
                    "row tier",
                    format!("{} of {}", bytes(stats.row_tier_bytes as u64), bytes(stats.row_tier_limit_bytes as u64)),
                ),
                ("log", format!("{}, {} syncs", bytes(stats.log_bytes), stats.fsyncs)),
                (
                    "disk",
                    if stats.disk_low { "almost full: writes are refused until space is freed" } else { "has room" }
                        .to_owned(),
                ),
                ("flushes", stats.flushes.to_string()),
                (
                    "rows scanned",
                    format!("{} in rows, {} in columns", stats.rows_scanned_row_tier, stats.rows_scanned_columns),
                ),
            ],
        );
        let running = engine.queries();
        body.push_str("<h2>Running statements</h2>");
        if running.is_empty() {
            body.push_str("<p>none</p>");
        } else {
            body.push_str("<table><tr><th>id<th>user<th>state<th>seconds<th>rows<th>statement</tr>");
            for query in running {
                let seconds = query.started_at.elapsed().map(|elapsed| elapsed.as_secs_f64()).unwrap_or_default();
                let text: String = query.sql.chars().take(200).collect();
                let _infallible = write!(
                    body,
                    "<tr><td>{}<td>{}<td>{}<td>{seconds:.1}<td>{}<td><code>{}</code></tr>",
                    query.id,
                    escape(&query.principal),
                    escape(query.state),
                    query.rows,
                    escape(&text)
                );
            }
            body.push_str("</table>");
        }
    }
    let html = format!(
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta http-equiv=refresh content=5>\
         <meta name=viewport content=\"width=device-width\"><title>LatticeDB</title><style>\
         body{{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430;background:#fff}}\
         h1{{font-size:1.5rem;margin:0 0 1rem}}h2{{font-size:1rem;margin:1.5rem 0 .3rem;color:#50607a}}\
         table{{border-collapse:collapse;width:100%}}td,th{{text-align:left;padding:.25rem .8rem .25rem 0;border-bottom:1px solid #e4e8ef;vertical-align:top}}\
         td:first-child{{width:10rem;color:#50607a}}code{{font-size:.9em}}\
         @media(prefers-color-scheme:dark){{body{{background:#14181f;color:#e4e8ef}}td,th{{border-color:#2a3240}}td:first-child,h2{{color:#93a1b8}}a{{color:#8ab4ff}}}}\
         </style></head><body><h1>LatticeDB</h1>{body}<p><a href=/metrics>metrics</a> · <a href=/health>health</a> · <a href=/ready>ready</a></p></body></html>"
    );
    Html(html).into_response()
}

fn section(body: &mut String, title: &str, rows: Vec<(&'static str, String)>) {
    let _infallible = write!(body, "<h2>{title}</h2><table>");
    for (name, value) in rows {
        let _infallible = write!(body, "<tr><td>{name}<td>{}</tr>", escape(&value));
    }
    body.push_str("</table>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[allow(clippy::cast_precision_loss, reason = "shown to people")]
fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_become_markup() {
        assert_eq!(escape("<b>&\"x\""), "&lt;b&gt;&amp;&quot;x&quot;");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(3 << 20), "3.0 MiB");
    }

    fn basic(text: &str) -> HeaderMap {
        use base64::Engine as _;
        let value = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text));
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    fn guarded() -> Status {
        Status::new(Vec::new(), |user, password| user == "admin" && password == "a:b")
    }

    const HERE: Peer = Peer(SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9));

    #[tokio::test(start_paused = true)]
    async fn the_page_asks_for_credentials_when_they_are_set() {
        let status = guarded();
        for _ in 0..10 {
            let began = tokio::time::Instant::now();
            assert_eq!(status.admit(&HeaderMap::new(), HERE).await.unwrap_err().status(), StatusCode::UNAUTHORIZED);
            assert!(began.elapsed().is_zero(), "no password is no guess");
        }
        assert!(status.admit(&basic("admin:a:b"), HERE).await.is_ok());
        assert!(Status::new(Vec::new(), |_, _| true).admit(&HeaderMap::new(), HERE).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_wait_their_turn() {
        let status = guarded();
        let began = tokio::time::Instant::now();
        for _ in 0..10 {
            assert_eq!(status.admit(&basic("admin:x"), HERE).await.unwrap_err().status(), StatusCode::UNAUTHORIZED);
        }
        assert!(began.elapsed().as_secs() >= 15, "{:?}", began.elapsed());
        let guess = basic("admin:x");
        let at_once = (0..9).map(|_| status.admit(&guess, HERE));
        let refused = futures::future::join_all(at_once).await.into_iter().map(|outcome| outcome.unwrap_err().status());
        assert!(refused.filter(|&status| status == StatusCode::TOO_MANY_REQUESTS).count() >= 6);
        tokio::time::sleep(std::time::Duration::from_secs(30)).await;
        assert!(status.admit(&basic("admin:a:b"), HERE).await.is_ok());
    }
}

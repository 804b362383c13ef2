//! What every request has: a session, a deadline, and an answer that carries the session's cookie.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Response};
use tracing::Instrument as _;

use crate::auth::Credentials;
use crate::encode::sleep_until;
use crate::error::{Error, Result};
use crate::server::ConnectionInfo;
use crate::sessions::{Active, COOKIE, Client, Origin, Registry};

/// One request on behalf of a session.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) client: Arc<Client>,
    /// Keeps the session from expiring.
    #[expect(dead_code, reason = "held for its drop")]
    active: Active,
    pub(crate) deadline: Option<Instant>,
    fresh: bool,
}

impl Call {
    /// Finds the session of a request.
    pub(crate) async fn enter<T>(registry: &Registry, request: &Request<T>, create: bool) -> Result<Call> {
        let credentials = Credentials::of(request.metadata())?;
        let origin = origin(request.metadata(), request.extensions());
        let resolved = if create {
            registry.resolve(credentials, &origin).await?
        } else {
            registry.existing(credentials, &origin).await?
        };
        Ok(Call {
            client: resolved.client,
            active: resolved.active,
            deadline: deadline(request.metadata()),
            fresh: resolved.fresh,
        })
    }

    /// The same caller for work that outlives the request.
    pub(crate) fn on_behalf(call: &Call) -> Call {
        Call { client: Arc::clone(&call.client), active: call.busy(), deadline: None, fresh: false }
    }

    /// Does the work within the deadline; a panic becomes an error.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let span = tracing::debug_span!("flight.request", session = self.client.number);
        guarded(self.deadline, work).instrument(span).await
    }

    /// Marks the session as busy for longer than the request itself.
    pub(crate) fn busy(&self) -> Active {
        Active::new(&self.client)
    }

    /// An answer with the cookie of a session that this request made.
    pub(crate) fn answer<T>(&self, value: T) -> Response<T> {
        let mut response = Response::new(value);
        if self.fresh {
            put_cookie(response.metadata_mut(), &self.client);
        }
        response
    }
}

/// Does work within a deadline; a panic becomes an error.
pub(crate) async fn guarded<T>(deadline: Option<Instant>, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        done = AssertUnwindSafe(work).catch_unwind() => {
            done.unwrap_or_else(|_| Err(Error::Internal("the request panicked".to_owned())))
        }
        () = sleep_until(deadline) => Err(Error::DeadlineExceeded),
    }
}

/// Tells a client its session cookie.
pub(crate) fn put_cookie(metadata: &mut MetadataMap, client: &Client) {
    if let Ok(cookie) = format!("{COOKIE}={}; Path=/; HttpOnly", client.cookie).parse() {
        metadata.append("set-cookie", cookie);
    }
}

/// Where a request comes from.
pub(crate) fn origin<'a>(metadata: &'a MetadataMap, extensions: &Extensions) -> Origin<'a> {
    let text = |key: &str| metadata.get(key).and_then(|value| value.to_str().ok());
    let connection = extensions.get::<ConnectionInfo>();
    Origin {
        connection: connection.map(|connection| connection.number),
        peer: connection.map(|connection| connection.peer),
        application: text("user-agent"),
        schema: text("schema"),
        cookie: cookie(metadata),
    }
}

fn cookie(metadata: &MetadataMap) -> Option<&str> {
    metadata
        .get_all("cookie")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|header| header.split(';'))
        .filter_map(|pair| pair.split_once('='))
        .find(|(name, _)| name.trim() == COOKIE)
        .map(|(_, value)| value.trim().trim_matches('"'))
        .filter(|value| !value.is_empty())
}

/// The deadline that `grpc-timeout` sets. A hair earlier than asked, so that our error wins against the transport's.
fn deadline(metadata: &MetadataMap) -> Option<Instant> {
    let timeout = metadata.get("grpc-timeout")?.to_str().ok().and_then(parse_timeout)?;
    let margin = Duration::from_millis(2).min(timeout / 2);
    Instant::now().checked_add(timeout - margin)
}

/// Eight digits at most and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(value * 3600),
        'M' => Duration::from_secs(value * 60),
        'S' => Duration::from_secs(value),
        'm' => Duration::from_millis(value),
        'u' => Duration::from_micros(value),
        'n' => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read() {
        assert_eq!(parse_timeout("20S"), Some(Duration::from_secs(20)));
        assert_eq!(parse_timeout("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(parse_timeout("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(parse_timeout("99999999u"), Some(Duration::from_micros(99_999_999)));
        for wrong in ["", "S", "123456789S", "1x", "-1S", "1 S", "ü"] {
            assert_eq!(parse_timeout(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn cookies_are_found() {
        let mut metadata = MetadataMap::new();
        assert_eq!(cookie(&metadata), None);
        metadata.append("cookie", "a=b; arrow_flight_session_id=\"xyz\"".parse().unwrap());
        assert_eq!(cookie(&metadata), Some("xyz"));
        let mut metadata = MetadataMap::new();
        metadata.append("cookie", "a=b".parse().unwrap());
        metadata.append("cookie", "arrow_flight_session_id=1".parse().unwrap());
        assert_eq!(cookie(&metadata), Some("1"));
        let mut metadata = MetadataMap::new();
        metadata.append("cookie", "arrow_flight_session_id=".parse().unwrap());
        assert_eq!(cookie(&metadata), None);
    }

    #[tokio::test]
    async fn panics_and_deadlines_are_errors() {
        let quiet = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let result: Result<()> = guarded(None, async { panic!("boom") }).await;
        std::panic::set_hook(quiet);
        assert!(matches!(result, Err(Error::Internal(_))));
        let soon = Some(Instant::now() + Duration::from_millis(5));
        let result: Result<()> = guarded(soon, std::future::pending()).await;
        assert!(matches!(result, Err(Error::DeadlineExceeded)));
    }
}

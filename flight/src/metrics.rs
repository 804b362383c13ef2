//! What the wire counts.
//!
//! A call is counted when its answer is complete: for a stream that is its end, with the code it ended with. A stream that the
//! client leaves counts as cancelled.
//!
//! # Invariants
//! - METRICS-1 every call is counted once, under its method and its final code. Test: `tests::tickets::calls_are_counted_by_code`,
//!   `streams_are_counted_at_their_end`.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures::Stream;
use tonic::{Code, Status};

/// The methods of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Handshake,
    ListFlights,
    GetFlightInfo,
    PollFlightInfo,
    GetSchema,
    DoGet,
    DoPut,
    DoAction,
    ListActions,
    DoExchange,
}

impl Method {
    const ALL: [Method; 10] = [
        Method::Handshake,
        Method::ListFlights,
        Method::GetFlightInfo,
        Method::PollFlightInfo,
        Method::GetSchema,
        Method::DoGet,
        Method::DoPut,
        Method::DoAction,
        Method::ListActions,
        Method::DoExchange,
    ];

    const fn name(self) -> &'static str {
        match self {
            Method::Handshake => "Handshake",
            Method::ListFlights => "ListFlights",
            Method::GetFlightInfo => "GetFlightInfo",
            Method::PollFlightInfo => "PollFlightInfo",
            Method::GetSchema => "GetSchema",
            Method::DoGet => "DoGet",
            Method::DoPut => "DoPut",
            Method::DoAction => "DoAction",
            Method::ListActions => "ListActions",
            Method::DoExchange => "DoExchange",
        }
    }
}

/// The codes that gRPC has, in order of their numbers.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Counters that requests add to.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) streams: AtomicU64,
    pub(crate) active_streams: AtomicU64,
    pub(crate) rows_sent: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) rows_ingested: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) logins_failed: AtomicU64,
    pub(crate) logins_throttled: AtomicU64,
    calls: [[AtomicU64; CODES.len()]; Method::ALL.len()],
}

/// Calls of one method that ended with one code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls {
    /// As the protocol spells it: `DoGet`, `GetFlightInfo` …
    pub method: &'static str,
    /// As gRPC spells it: `OK`, `INVALID_ARGUMENT` …
    pub code: &'static str,
    /// How many since the start.
    pub count: u64,
}

/// The wire's counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Sessions that are open now.
    pub sessions: u64,
    /// Connections accepted since the start.
    pub connections: u64,
    /// Requests received since the start.
    pub requests: u64,
    /// Requests that failed since the start, before their first answer.
    pub failures: u64,
    /// Results begun since the start.
    pub streams: u64,
    /// Results that are being sent now.
    pub active_streams: u64,
    /// Rows sent since the start.
    pub rows_sent: u64,
    /// Bytes of Arrow data sent since the start.
    pub bytes_sent: u64,
    /// Bytes of Arrow data received since the start.
    pub bytes_received: u64,
    /// Rows loaded by ingest since the start.
    pub rows_ingested: u64,
    /// Log-ins with wrong credentials since the start.
    pub logins_failed: u64,
    /// Log-ins that had to wait, or were refused unchecked, after failed ones.
    pub logins_throttled: u64,
    /// Planned results whose versions are held for their readers now.
    pub results_pinned: u64,
    /// Calls by method and code, without those that never happened.
    pub calls: Vec<Calls>,
}

impl Counters {
    pub(crate) fn read(&self, sessions: usize, results_pinned: usize) -> Metrics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let calls = Method::ALL.iter().flat_map(|method| {
            let of_method = &self.calls[*method as usize];
            CODES.iter().zip(of_method).map(|(code, count)| Calls { method: method.name(), code, count: get(count) })
        });
        Metrics {
            sessions: sessions as u64,
            connections: get(&self.connections),
            requests: get(&self.requests),
            failures: get(&self.failures),
            streams: get(&self.streams),
            active_streams: get(&self.active_streams),
            rows_sent: get(&self.rows_sent),
            bytes_sent: get(&self.bytes_sent),
            bytes_received: get(&self.bytes_received),
            rows_ingested: get(&self.rows_ingested),
            logins_failed: get(&self.logins_failed),
            logins_throttled: get(&self.logins_throttled),
            results_pinned: results_pinned as u64,
            calls: calls.filter(|calls| calls.count > 0).collect(),
        }
    }

    /// Counts a call that has ended.
    pub(crate) fn ended(&self, method: Method, code: Code) {
        // Codes that gRPC may add one day count as unknown.
        let code = usize::try_from(i32::from(code)).ok().filter(|code| *code < CODES.len()).unwrap_or(2);
        self.calls[method as usize][code].fetch_add(1, Ordering::Relaxed);
    }

    /// Marks a result as being sent while it lives.
    pub(crate) fn active(self: &Arc<Self>) -> ActiveStream {
        self.active_streams.fetch_add(1, Ordering::Relaxed);
        ActiveStream(Arc::clone(self))
    }
}

/// A result that is being sent.
#[derive(Debug)]
pub(crate) struct ActiveStream(Arc<Counters>);

impl Drop for ActiveStream {
    fn drop(&mut self) {
        self.0.active_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a call at the end of its stream.
pub(crate) struct Counted<S> {
    stream: S,
    counters: Arc<Counters>,
    method: Method,
    code: Option<Code>,
    ended: bool,
}

impl<S> Counted<S> {
    pub(crate) fn new(stream: S, counters: &Arc<Counters>, method: Method) -> Counted<S> {
        Counted { stream, counters: Arc::clone(counters), method, code: None, ended: false }
    }
}

impl<T, S: Stream<Item = Result<T, Status>> + Unpin> Stream for Counted<S> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = Pin::new(&mut self.stream).poll_next(context);
        match &next {
            Poll::Ready(Some(Err(status))) => {
                self.code.get_or_insert(status.code());
            }
            Poll::Ready(None) => self.ended = true,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        next
    }
}

impl<S> Drop for Counted<S> {
    fn drop(&mut self) {
        let code = self.code.unwrap_or(if self.ended { Code::Ok } else { Code::Cancelled });
        self.counters.ended(self.method, code);
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn streams_are_counted_at_their_end() {
        let counters = Arc::<Counters>::default();
        let stream =
            |items: Vec<Result<i32, Status>>| Counted::new(futures::stream::iter(items), &counters, Method::DoGet);
        assert_eq!(stream(vec![Ok(1), Ok(2)]).count().await, 2);
        assert_eq!(stream(vec![Ok(1), Err(Status::not_found("x"))]).count().await, 2);
        let mut left = stream(vec![Ok(1), Ok(2)]);
        left.next().await.unwrap().unwrap();
        assert_eq!(counters.read(0, 0).calls.len(), 2, "not ended yet");
        drop(left);
        let calls = counters.read(0, 0).calls;
        let codes: Vec<&str> = calls.iter().map(|calls| calls.code).collect();
        assert_eq!(codes, ["OK", "CANCELLED", "NOT_FOUND"]);
        assert!(calls.iter().all(|calls| calls.method == "DoGet" && calls.count == 1));
    }

    #[test]
    fn codes_have_their_names() {
        for (number, name) in CODES.iter().enumerate() {
            let code = Code::from(i32::try_from(number).unwrap());
            let described = format!("{code:?}").to_uppercase();
            assert_eq!(described, name.replace('_', ""), "{number}");
        }
        for (number, method) in Method::ALL.iter().enumerate() {
            assert_eq!(*method as usize, number);
        }
    }
}

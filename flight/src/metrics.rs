//! What the wire counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters that requests add to.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) streams: AtomicU64,
    pub(crate) rows_sent: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) rows_ingested: AtomicU64,
    pub(crate) connections: AtomicU64,
}

/// The wire's counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Sessions that are open now.
    pub sessions: u64,
    /// Connections accepted since the start.
    pub connections: u64,
    /// Requests received since the start.
    pub requests: u64,
    /// Requests that failed since the start.
    pub failures: u64,
    /// Results begun since the start.
    pub streams: u64,
    /// Rows sent since the start.
    pub rows_sent: u64,
    /// Bytes of Arrow data sent since the start.
    pub bytes_sent: u64,
    /// Rows loaded by ingest since the start.
    pub rows_ingested: u64,
}

impl Counters {
    pub(crate) fn read(&self, sessions: usize) -> Metrics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Metrics {
            sessions: sessions as u64,
            connections: get(&self.connections),
            requests: get(&self.requests),
            failures: get(&self.failures),
            streams: get(&self.streams),
            rows_sent: get(&self.rows_sent),
            bytes_sent: get(&self.bytes_sent),
            rows_ingested: get(&self.rows_ingested),
        }
    }
}

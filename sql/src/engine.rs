//! What all sessions share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base::{Principal, SessionId};
use datafusion::execution::SessionState;
use storage::Store;
use tokio_util::sync::CancellationToken;

use crate::catalog::{CatalogCache, bootstrap};
use crate::door::{EngineMetrics, EngineOptions, RunningQuery, SessionOptions};
use crate::locks::LockTable;
use crate::plan::base_state;
use crate::queries::Registry;
use crate::sequences::Sequences;
use crate::session::{Session, SessionInner};
use crate::{Error, Result};

/// How long foreign-key locks are waited for unless `lock_timeout` says otherwise.
pub(crate) const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// The engine over one store. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    pub(crate) inner: Arc<EngineInner>,
}

pub(crate) struct EngineInner {
    pub(crate) store: Store,
    pub(crate) options: EngineOptions,
    /// What every statement's state is cloned from.
    pub(crate) base: SessionState,
    pub(crate) catalog: CatalogCache,
    pub(crate) locks: Arc<LockTable>,
    pub(crate) queries: Arc<Registry>,
    pub(crate) sequences: Sequences,
    pub(crate) closing: CancellationToken,
    /// High half of session ids: durable, so that ids are unique in the life of the cluster.
    epoch: u64,
    next_session: AtomicU64,
    next_transaction: AtomicU64,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("epoch", &self.inner.epoch).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for EngineInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineInner").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the engine: makes the catalog in a new store, and drops what sessions of an earlier run left behind.
    pub async fn open(store: Store, options: EngineOptions) -> Result<Engine> {
        let base = base_state(&options)?;
        let epoch = store.allocate("sessions", 1).await.map_err(Error::classified)?;
        let catalog = CatalogCache::default();
        bootstrap(&store, &catalog).await?;
        let inner = EngineInner {
            store,
            options,
            base,
            catalog,
            locks: Arc::default(),
            queries: Arc::default(),
            sequences: Sequences::default(),
            closing: CancellationToken::new(),
            epoch,
            next_session: AtomicU64::new(1),
            next_transaction: AtomicU64::new(1),
        };
        Ok(Engine { inner: Arc::new(inner) })
    }

    /// Starts a session.
    pub fn session(&self, principal: Principal, options: SessionOptions) -> Session {
        let number = self.inner.next_session.fetch_add(1, Ordering::Relaxed);
        let id = SessionId((self.inner.epoch << 32) | number);
        self.inner.queries.counters.sessions.fetch_add(1, Ordering::Relaxed);
        Session { inner: Arc::new(SessionInner::new(self.inner.clone(), id, principal, options)) }
    }

    /// The statements that run now.
    pub fn queries(&self) -> Vec<RunningQuery> {
        self.inner.queries.list()
    }

    /// Stops a statement, whoever runs it. Returns whether it was there.
    pub fn cancel(&self, query: u64) -> bool {
        self.inner.queries.cancel(query, |_| true)
    }

    /// The store below.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Counters since the start.
    pub fn metrics(&self) -> EngineMetrics {
        let counters = &self.inner.queries.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EngineMetrics {
            statements: read(&counters.statements),
            failed: read(&counters.failed),
            cancelled: read(&counters.cancelled),
            rows_sent: read(&counters.rows_sent),
            rows_written: read(&counters.rows_written),
            commits: read(&counters.commits),
            rollbacks: read(&counters.rollbacks),
            sessions: read(&counters.sessions),
            plans_made: read(&counters.plans_made),
            plans_reused: read(&counters.plans_reused),
            conflicts: read(&counters.conflicts),
            running: self.inner.queries.count(),
            memory_used: self.inner.base.runtime_env().memory_pool.reserved() as u64,
        }
    }

    /// Whether row versions that somebody holds should be let go, because the row tier needs its memory for writers.
    pub fn is_pressed(&self) -> bool {
        let stats = self.inner.store.stats();
        stats.row_tier_bytes > stats.row_tier_limit_bytes / 4 * 3
    }

    /// Cancels everything that runs. The store is closed by its owner.
    pub async fn shutdown(&self) {
        self.inner.closing.cancel();
        for _ in 0..100 {
            if self.inner.queries.count() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl EngineInner {
    pub(crate) fn next_transaction(&self) -> u64 {
        self.next_transaction.fetch_add(1, Ordering::Relaxed)
    }
}

//! The statements that run now: who, what, since when, and how to stop them.
//!
//! A statement is registered before it is planned and leaves when its last batch was read or its stream was dropped.
//! Cancelling wakes whoever polls it; the plan stops because its stream is dropped.

use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use arrow::array::RecordBatch;
use base::{ErrorKind, SessionId, SqlState};
use futures::{FutureExt, Stream, StreamExt};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::door::{BatchStream, RunningQuery};
use crate::progress::Progress;
use crate::transaction::Work;
use crate::{Error, Result};

/// Where a statement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    Planning = 0,
    Running = 1,
    Streaming = 2,
    Committing = 3,
}

impl Stage {
    fn word(code: u8) -> &'static str {
        match code {
            0 => "planning",
            1 => "running",
            2 => "streaming",
            _ => "committing",
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) statements: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) rows_sent: AtomicU64,
    pub(crate) rows_written: AtomicU64,
    pub(crate) commits: AtomicU64,
    pub(crate) rollbacks: AtomicU64,
    pub(crate) sessions: AtomicU64,
    pub(crate) plans_made: AtomicU64,
    pub(crate) plans_reused: AtomicU64,
    pub(crate) conflicts: AtomicU64,
}

impl Counters {
    /// Counts an error that a client is told, if another transaction is the reason.
    pub(crate) fn told(&self, error: &Error) {
        if error.sqlstate == SqlState::SERIALIZATION_FAILURE {
            self.conflicts.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// All running statements.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    next: AtomicU64,
    running: Mutex<BTreeMap<u64, Arc<Running>>>,
    pub(crate) counters: Counters,
}

#[derive(Debug)]
struct Running {
    id: u64,
    session: SessionId,
    principal: String,
    sql: Arc<str>,
    stage: AtomicU8,
    rows: AtomicU64,
    progress: Arc<Progress>,
    started_at: SystemTime,
    started: Instant,
    cancel: CancellationToken,
}

impl Registry {
    /// Registers a statement.
    pub(crate) fn start(
        self: &Arc<Self>,
        session: SessionId,
        principal: &str,
        sql: &Arc<str>,
        timeout: Duration,
        slow: Duration,
        closing: &CancellationToken,
        progress: Arc<Progress>,
    ) -> Ticket {
        let id = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.counters.statements.fetch_add(1, Ordering::Relaxed);
        let running = Arc::new(Running {
            id,
            session,
            principal: principal.to_owned(),
            sql: sql.clone(),
            stage: AtomicU8::new(Stage::Planning as u8),
            rows: AtomicU64::new(0),
            progress,
            started_at: SystemTime::now(),
            started: Instant::now(),
            cancel: closing.child_token(),
        });
        self.running.lock().insert(id, running.clone());
        let deadline = (!timeout.is_zero()).then(|| tokio::time::Instant::now() + timeout);
        Ticket { registry: self.clone(), running, deadline, slow, work: Mutex::default() }
    }

    /// What runs, oldest first.
    pub(crate) fn list(&self) -> Vec<RunningQuery> {
        self.running
            .lock()
            .values()
            .map(|it| RunningQuery {
                id: it.id,
                session: it.session,
                principal: it.principal.clone(),
                sql: it.sql.clone(),
                state: Stage::word(it.stage.load(Ordering::Relaxed)),
                started_at: it.started_at,
                rows: it.rows.load(Ordering::Relaxed),
                progress: it.progress.fraction(),
            })
            .collect()
    }

    pub(crate) fn count(&self) -> u64 {
        self.running.lock().len() as u64
    }

    /// Stops a statement; only its own user and administrators may.
    pub(crate) fn cancel(&self, id: u64, allowed: impl Fn(&str) -> bool) -> bool {
        match self.running.lock().get(&id) {
            Some(running) if allowed(&running.principal) => {
                running.cancel.cancel();
                true
            }
            _ => false,
        }
    }
}

/// A registered statement; leaves the registry when dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    registry: Arc<Registry>,
    running: Arc<Running>,
    deadline: Option<tokio::time::Instant>,
    slow: Duration,
    /// Kept until the statement's last row is fetched.
    work: Mutex<Option<Work>>,
}

impl Ticket {
    /// Keeps the statement's transaction from being idle while its rows are fetched.
    pub(crate) fn keep(&self, work: Work) {
        *self.work.lock() = Some(work);
    }

    /// Fails when the statement was cancelled or its time is up.
    pub(crate) fn still_wanted(&self) -> Result<()> {
        if self.running.cancel.is_cancelled() {
            return Err(cancelled());
        }
        match self.deadline {
            Some(deadline) if deadline <= tokio::time::Instant::now() => Err(timed_out()),
            _ => Ok(()),
        }
    }

    pub(crate) fn stage(&self, stage: Stage) {
        self.running.stage.store(stage as u8, Ordering::Relaxed);
    }

    /// What the statement's scans report to.
    pub(crate) fn progress(&self) -> Arc<Progress> {
        self.running.progress.clone()
    }

    /// Runs a future until it ends, the statement is cancelled or its time is up.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let result = tokio::select! {
            biased;
            stop = self.stopped() => Err(stop),
            result = AssertUnwindSafe(work).catch_unwind() => result.unwrap_or_else(|panic| Err(panicked(panic.as_ref()))),
        };
        if let Err(error) = &result {
            self.note(error);
        }
        result
    }

    fn note(&self, error: &Error) {
        let counters = &self.registry.counters;
        counters.told(error);
        if error.kind == ErrorKind::Cancelled { &counters.cancelled } else { &counters.failed }
            .fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for a reason to stop. There is none while the statement commits: what was sent to the log is not called back,
    /// so "cancelled" would be a lie.
    async fn stopped(&self) -> Error {
        let mut asked = pin!(self.asked_to_stop());
        let mut reason = None;
        std::future::poll_fn(|context| {
            if reason.is_none() {
                if let Poll::Ready(error) = asked.as_mut().poll(context) {
                    reason = Some(error);
                }
            }
            if self.running.stage.load(Ordering::Relaxed) == Stage::Committing as u8 {
                return Poll::Pending;
            }
            reason.take().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    async fn asked_to_stop(&self) -> Error {
        let timer = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.running.cancel.cancelled() => cancelled(),
            () = timer => timed_out(),
        }
    }

    /// Guards a result stream and keeps the statement registered until it ends.
    pub(crate) fn stream(self, inner: BatchStream) -> BatchStream {
        self.stage(Stage::Streaming);
        let cancel = Box::pin(self.running.cancel.clone().cancelled_owned());
        let timer = self.deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline)));
        Guarded { inner, ticket: self, cancel, timer, done: false }.boxed()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.registry.running.lock().remove(&self.running.id);
        let took = self.running.started.elapsed();
        if !self.slow.is_zero() && took >= self.slow {
            tracing::warn!(
                target: "sql::slow",
                query = self.running.id,
                principal = %self.running.principal,
                milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                rows = self.running.rows.load(Ordering::Relaxed),
                sql = %self.running.sql,
                "slow statement"
            );
        }
    }
}

struct Guarded {
    inner: BatchStream,
    ticket: Ticket,
    cancel: Pin<Box<tokio_util::sync::WaitForCancellationFutureOwned>>,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    done: bool,
}

impl Stream for Guarded {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.done {
            return Poll::Ready(None);
        }
        let stop = if self.cancel.as_mut().poll(cx).is_ready() {
            Some(cancelled())
        } else if self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready()) {
            Some(timed_out())
        } else {
            None
        };
        let next = match stop {
            Some(error) => Poll::Ready(Some(Err(error))),
            None => {
                let inner = &mut self.inner;
                std::panic::catch_unwind(AssertUnwindSafe(|| inner.poll_next_unpin(cx)))
                    .unwrap_or_else(|panic| Poll::Ready(Some(Err(panicked(panic.as_ref())))))
            }
        };
        match &next {
            Poll::Ready(Some(Ok(batch))) => {
                let rows = batch.num_rows() as u64;
                self.ticket.running.rows.fetch_add(rows, Ordering::Relaxed);
                self.ticket.registry.counters.rows_sent.fetch_add(rows, Ordering::Relaxed);
            }
            Poll::Ready(Some(Err(error))) => {
                self.ticket.note(error);
                if let Some(work) = self.ticket.work.lock().take() {
                    work.failed();
                }
                self.done = true;
                self.inner = futures::stream::empty().boxed();
            }
            Poll::Ready(None) => self.done = true,
            Poll::Pending => {}
        }
        next
    }
}

/// A panic below is a defect of one statement, not of the session or the server.
fn panicked(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    tracing::error!(panic = text, "a statement panicked");
    Error::internal(format!("the statement failed inside the engine: {text}"))
}

fn cancelled() -> Error {
    Error::state(SqlState::QUERY_CANCELED, "canceling statement due to user request")
}

fn timed_out() -> Error {
    Error::state(SqlState::QUERY_CANCELED, "canceling statement due to statement timeout")
}

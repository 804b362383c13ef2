//! `PollFlightInfo`: statements that run on the server while the client asks how far they are.
//!
//! The first poll plans the statement and starts it as a job. A query's job runs until its first batch is there; what comes after is
//! computed as the client fetches it. A query with several endpoints is not started at all. A statement with effects runs to its end.
//! Every poll waits a little for news, so that short statements need one round trip and long ones few, and says how many of the rows
//! that the statement's scans will read have been read.
//!
//! # Invariants
//! - POLL-1 a statement runs once, however often it is polled. Test: `tests::polling_runs_once`.
//! - POLL-2 only the principal that started a job sees it. Held by [`Jobs::find`].
//! - POLL-3 the progress of a job never goes back, and is 1 only at its end. Test: `tests::tickets::progress_goes_on`.
//! - POLL-4 jobs are bounded: when there are too many, the oldest that has ended is forgotten, and if all run, a new one is refused.
//!   Test: `tests::tickets::jobs_are_bounded`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow_flight::sql::Any;
use arrow_flight::{FlightDescriptor, FlightInfo, PollInfo};
use base::{Principal, SqlState};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use prost::Message;
use sql::Progress;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::error::{Error, Result};
use crate::request::{Call, guarded};
use crate::results::Started;
use crate::service::{Bound, Inner, Service, read};

/// The type of the descriptor that a poll hands out for the next one.
pub(crate) const TOKEN_URL: &str = "type.googleapis.com/latticedb.PollToken";
/// How long the first poll waits, so that short statements need no second one.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// How long later polls wait for news.
const WAIT: Duration = Duration::from_secs(2);

/// How a job ended. A status cannot be cloned, and may be asked for more than once.
#[derive(Clone)]
enum End {
    Info(Box<FlightInfo>),
    Failed(Arc<Status>),
}

struct Job {
    principal: Principal,
    /// What is known before it ends: the schema.
    partial: FlightInfo,
    end: watch::Receiver<Option<End>>,
    progress: Arc<Progress>,
    abort: AbortHandle,
    expires: Mutex<Instant>,
}

/// The jobs.
pub(crate) struct Jobs {
    ttl: Duration,
    jobs_max: usize,
    jobs: Mutex<HashMap<Uuid, Arc<Job>>>,
}

impl Jobs {
    pub(crate) fn new(ttl: Duration, jobs_max: usize) -> Jobs {
        Jobs { ttl, jobs_max, jobs: Mutex::default() }
    }

    /// Makes room for one more job.
    fn make_room(&self) -> Result<()> {
        let mut jobs = self.jobs.lock();
        if jobs.len() < self.jobs_max {
            return Ok(());
        }
        // Also those that were cancelled, which leave no end behind.
        let ended = jobs.iter().filter(|(_, job)| job.abort.is_finished());
        let oldest = ended.min_by_key(|(_, job)| *job.expires.lock()).map(|(id, _)| *id);
        match oldest.and_then(|id| jobs.remove(&id)) {
            Some(_) => Ok(()),
            None => Err(Error::TooLarge(format!(
                "{} statements of PollFlightInfo are running; cancel some or wait for them",
                self.jobs_max
            ))),
        }
    }

    fn find(&self, id: Uuid, principal: &Principal) -> Result<Arc<Job>> {
        let job = self.jobs.lock().get(&id).cloned();
        job.filter(|job| job.principal == *principal)
            .ok_or_else(|| Error::unknown("query", SqlState::INVALID_CURSOR_NAME))
    }

    /// Starts a statement; answers with its end if it comes at once.
    pub(crate) async fn start(
        &self,
        inner: &Arc<Inner>,
        call: &Call,
        bound: Bound,
        descriptor: FlightDescriptor,
    ) -> Result<PollInfo> {
        self.make_room()?;
        let id = Uuid::new_v4();
        let progress = Arc::<Progress>::default();
        let partial = FlightInfo {
            schema: bound.announced()?,
            flight_descriptor: Some(token(id)),
            total_records: -1,
            total_bytes: -1,
            ordered: true,
            ..Default::default()
        };
        let (news, end) = watch::channel(None);
        let service = Service(Arc::clone(inner));
        let caller = Call::on_behalf(call);
        let watched = Arc::clone(&progress);
        let task = tokio::spawn(async move {
            let work = Box::pin(run(&service.0, &caller, bound, descriptor, watched));
            let end = match guarded(None, work).await {
                Ok(info) => End::Info(Box::new(info)),
                Err(error) => End::Failed(Arc::new(error.into())),
            };
            news.send_replace(Some(end));
        });
        let job = Arc::new(Job {
            principal: call.client.principal.clone(),
            partial,
            end,
            progress,
            abort: task.abort_handle(),
            expires: Mutex::new(Instant::now() + self.ttl),
        });
        self.jobs.lock().insert(id, Arc::clone(&job));
        self.wait(id, &job, FIRST_WAIT).await
    }

    /// Asks a job how far it is.
    pub(crate) async fn poll(&self, id: Uuid, call: &Call) -> Result<PollInfo> {
        let job = self.find(id, &call.client.principal)?;
        *job.expires.lock() = Instant::now() + self.ttl;
        self.wait(id, &job, WAIT).await
    }

    async fn wait(&self, id: Uuid, job: &Job, patience: Duration) -> Result<PollInfo> {
        let mut end = job.end.clone();
        let waited = tokio::time::timeout(patience, end.wait_for(Option::is_some)).await;
        let end = match waited {
            Ok(Ok(end)) => end.clone(),
            // The task was aborted.
            Ok(Err(_)) => return Err(Error::Cancelled),
            Err(_) => None,
        };
        match end {
            None => Ok(PollInfo {
                info: Some(job.partial.clone()),
                flight_descriptor: Some(token(id)),
                progress: job.progress.fraction(),
                ..Default::default()
            }),
            Some(End::Info(info)) => Ok(PollInfo { info: Some(*info), progress: Some(1.0), ..Default::default() }),
            Some(End::Failed(status)) => Err(Error::Relayed(copy(&status))),
        }
    }

    /// The info of a job that has ended.
    pub(crate) fn info(&self, id: Uuid, principal: &Principal) -> Result<FlightInfo> {
        let job = self.find(id, principal)?;
        let end = job.end.borrow().clone();
        match end {
            Some(End::Info(info)) => Ok(*info),
            Some(End::Failed(status)) => Err(Error::Relayed(copy(&status))),
            None => Ok(job.partial.clone()),
        }
    }

    /// Stops the job that a descriptor names; says whether there was one.
    pub(crate) fn cancel(&self, descriptor: &FlightDescriptor, principal: &Principal) -> bool {
        let Ok(any) = Any::decode(&*descriptor.cmd) else { return false };
        let (TOKEN_URL, Ok(id)) = (any.type_url.as_str(), Uuid::from_slice(&any.value)) else { return false };
        match self.find(id, principal) {
            Ok(job) if job.end.borrow().is_none() => {
                job.abort.abort();
                true
            }
            _ => false,
        }
    }

    /// Stops everything.
    pub(crate) fn stop_all(&self) {
        let all = std::mem::take(&mut *self.jobs.lock());
        for job in all.into_values() {
            job.abort.abort();
        }
    }

    /// Forgets jobs that nobody asks for any more.
    pub(crate) fn expire(&self) {
        let now = Instant::now();
        let gone: Vec<Arc<Job>> = {
            let mut jobs = self.jobs.lock();
            let ids: Vec<Uuid> = jobs.iter().filter(|(_, job)| *job.expires.lock() < now).map(|(id, _)| *id).collect();
            ids.iter().filter_map(|id| jobs.remove(id)).collect()
        };
        for job in gone {
            job.abort.abort();
        }
    }
}

/// Runs a job: a query until its first batch, everything else to the end.
async fn run(
    inner: &Inner,
    call: &Call,
    bound: Bound,
    descriptor: FlightDescriptor,
    progress: Arc<Progress>,
) -> Result<FlightInfo> {
    let id = Uuid::new_v4();
    let Some(plan) = bound.query() else {
        let outcome = bound.execute(progress).await?;
        return inner.issue_outcome(call, id, &bound, outcome, descriptor).await;
    };
    let planned = bound.open(plan, &inner.limits, progress).await?;
    if planned.opened.as_ref().is_some_and(|opened| opened.shares() > 1) {
        // Its endpoints are there at once, and whoever reads one sees how far it is.
        return inner.issue_planned(id, &bound, planned, descriptor);
    }
    let mut rows = read(&planned, 0).await?;
    let statement = Arc::clone(&planned.plan.sql);
    let first = match rows.stream.next().await {
        Some(first) => Some(first.map_err(|error| Error::of_statement(error, &statement))?),
        None => None,
    };
    inner.issue_started(id, &bound, &planned, Started { rows, first, statement }, descriptor)
}

fn token(id: Uuid) -> FlightDescriptor {
    let any = Any { type_url: TOKEN_URL.to_owned(), value: Bytes::copy_from_slice(id.as_bytes()) };
    FlightDescriptor::new_cmd(any.encode_to_vec())
}

fn copy(status: &Status) -> Box<Status> {
    let code: Code = status.code();
    let details = Bytes::copy_from_slice(status.details());
    Box::new(Status::with_details_and_metadata(code, status.message(), details, status.metadata().clone()))
}

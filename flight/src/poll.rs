//! `PollFlightInfo`: statements that run on the server while the client asks how far they are.
//!
//! The first poll plans the statement and starts it as a job. A query's job runs until its first batch is there; what comes after is
//! computed as the client fetches it. A statement with effects runs to its end. Every poll waits a little for news, so that short
//! statements need one round trip and long ones few.
//!
//! # Invariants
//! - POLL-1 a statement runs once, however often it is polled. Test: `tests::polling_runs_once`.
//! - POLL-2 only the principal that started a job sees it. Held by [`Jobs::find`].

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
use sql::Outcome;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::encode::schema_bytes;
use crate::error::{Error, Result};
use crate::request::{Call, guarded};
use crate::results::{Content, Started};
use crate::service::{Bound, Inner, Service};

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
    abort: AbortHandle,
    expires: Mutex<Instant>,
}

/// The jobs.
pub(crate) struct Jobs {
    ttl: Duration,
    jobs: Mutex<HashMap<Uuid, Arc<Job>>>,
}

impl Jobs {
    pub(crate) fn new(ttl: Duration) -> Jobs {
        Jobs { ttl, jobs: Mutex::default() }
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
        let id = Uuid::new_v4();
        let partial = FlightInfo {
            schema: schema_bytes(&bound.schema())?,
            flight_descriptor: Some(token(id)),
            total_records: -1,
            total_bytes: -1,
            ordered: true,
            ..Default::default()
        };
        let (news, end) = watch::channel(None);
        let service = Service(Arc::clone(inner));
        let caller = Call::on_behalf(call);
        let task = tokio::spawn(async move {
            let work = Box::pin(run(&service.0, &caller, bound, descriptor));
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
                progress: None,
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
async fn run(inner: &Inner, call: &Call, bound: Bound, descriptor: FlightDescriptor) -> Result<FlightInfo> {
    let id = Uuid::new_v4();
    let outcome = bound.execute().await?;
    if !bound.is_query() {
        return inner.issue_outcome(call, id, &bound, outcome, descriptor).await;
    }
    let mut rows = match outcome {
        Outcome::Rows(rows) => rows,
        other => return inner.issue_outcome(call, id, &bound, other, descriptor).await,
    };
    let statement = Arc::clone(&bound.prepared.sql);
    let first = match rows.stream.next().await {
        Some(first) => Some(first.map_err(|error| Error::of_statement(error, &statement))?),
        None => None,
    };
    inner.issue_query(id, &bound, descriptor, |_| Content::Started(Started { rows, first, statement }))
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

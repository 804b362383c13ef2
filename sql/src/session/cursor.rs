//! Queries that are opened at one moment and read later, as a whole or in shares.
//!
//! Opening chooses the moment, binds and plans; nothing runs. What is opened holds the versions that it will read, so its
//! holder has to bound how many there are and for how long. The [`Moment`] alone brings the same rows back at any later
//! time, after a restart too, because history keeps them.
//!
//! # Invariants
//! - CURSOR-1 whoever reads an opened query, and whenever, reads the moment it was opened at. Test:
//!   `an_opened_query_reads_its_moment`.
//! - CURSOR-2 the shares of a query have all its rows, each once (SHARE-1). Test: `shares_have_every_row_once`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use base::{CommitTs, SqlState};
use chrono::{DateTime, Utc};
use futures::StreamExt;
use sqlparser::ast;

use super::{Given, Prepared, Session, SessionInner, check_params, conform, place};
use crate::door::{Params, Rows, TransactionId};
use crate::parse::statement::StatementAst;
use crate::plan::{Binder, ClientForm, Overrides, Planning, RunnablePlan, Scope, authorize};
use crate::progress::Progress;
use crate::queries::Stage;
use crate::transaction::{Reader, Txn, Work};
use crate::{Error, Result};

/// The moment a query reads at, and what it takes for `now()`. Two numbers that can travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Every commit up to here is seen.
    pub snapshot: CommitTs,
    /// `now()`, in microseconds since 1970.
    pub now_us: i64,
}

/// How to open a query.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// The moment to read at; the newest when absent. A query in a transaction reads what its transaction sees.
    pub at: Option<Moment>,
    /// Make at most so many shares; 0 and 1 mean none.
    pub shares_max: usize,
    /// Rows of one share, at least about.
    pub share_rows_min: usize,
    /// What the query's scans report to.
    pub progress: Option<Arc<Progress>>,
}

/// A query that is opened, not started. Dropping it lets go of the versions it holds.
pub struct Opened {
    session: Session,
    sql: Arc<str>,
    schema: SchemaRef,
    moment: Option<Moment>,
    progress: Arc<Progress>,
    /// Its transaction, which is not idle while rows are fetched.
    txn: Option<Arc<Txn>>,
    content: Content,
}

enum Content {
    /// One row by its key was cheaper to read than to plan.
    Read(Vec<RecordBatch>),
    Whole {
        plan: RunnablePlan,
        taken: AtomicBool,
        rows: Option<usize>,
    },
    Shared {
        plan: RunnablePlan,
        shares: usize,
    },
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("sql", &self.sql).field("moment", &self.moment).finish_non_exhaustive()
    }
}

impl Opened {
    /// The schema of every batch, in client form.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The moment it reads at; `None` in a transaction, whose own changes no moment names.
    pub fn moment(&self) -> Option<Moment> {
        self.moment
    }

    /// How many shares it has; 1 when it is read as a whole.
    pub fn shares(&self) -> usize {
        match &self.content {
            Content::Shared { shares, .. } => *shares,
            Content::Read(_) | Content::Whole { .. } => 1,
        }
    }

    /// Whether it holds versions that newer ones have replaced, or will.
    pub fn holds_versions(&self) -> bool {
        !matches!(self.content, Content::Read(_))
    }

    /// Bytes of rows that were read at once.
    pub fn held_bytes(&self) -> usize {
        match &self.content {
            Content::Read(batches) => batches.iter().map(RecordBatch::get_array_memory_size).sum(),
            Content::Whole { .. } | Content::Shared { .. } => 0,
        }
    }

    /// Reads a share, from 0, or the whole when there is one share. `None` when a whole plan was read before: it has to be
    /// opened again, at the same moment.
    pub fn read(&self, share: usize) -> Result<Option<Rows>> {
        let session = &self.session.inner;
        session.check_open()?;
        if share >= self.shares() {
            return Err(Error::state(SqlState::INVALID_CURSOR_NAME, format!("the result has no share {share}")));
        }
        let (plan, stream, rows_hint) = match &self.content {
            Content::Read(batches) => {
                let rows = batches.iter().map(RecordBatch::num_rows).sum();
                session.engine.queries.counters.rows_sent.fetch_add(rows as u64, Ordering::Relaxed);
                let stream = futures::stream::iter(batches.clone().into_iter().map(Ok)).boxed();
                return Ok(Some(Rows { schema: self.schema.clone(), stream, rows_hint: Some(rows) }));
            }
            Content::Whole { taken, .. } if taken.swap(true, Ordering::AcqRel) => return Ok(None),
            Content::Whole { plan, rows, .. } => (plan, plan.stream()?, *rows),
            Content::Shared { plan, .. } => (plan, plan.stream_of(share)?, None),
        };
        let ticket = session.ticket_of(&self.sql, self.progress.clone());
        ticket.stage(Stage::Running);
        if let Some(txn) = &self.txn {
            ticket.keep(txn.fetch());
        }
        debug_assert_eq!(plan.plan().schema().fields().len(), self.schema.fields().len());
        let stream = ticket.stream(ClientForm::announced(self.schema.clone()).stream(stream));
        Ok(Some(Rows { schema: self.schema.clone(), stream, rows_hint }))
    }
}

impl SessionInner {
    /// Binds, authorizes and plans a query.
    pub(super) async fn plan_query(
        &self,
        scope: &Scope,
        query: &ast::Query,
        announced: Option<SchemaRef>,
    ) -> Result<(RunnablePlan, ClientForm)> {
        let mut planning = Planning::of(scope)?;
        while let Some(inner) = planning.wants() {
            let mut query = query.clone();
            let binder = Binder::for_query(&inner, &mut query, Overrides::default(), false).await?;
            planning.give(binder.query(query)?)?;
        }
        let plan = authorize(planning.done()?, &self.principal)?.runnable(scope.state()).await?;
        let form = ClientForm::of(&plan.plan().schema());
        let form = match announced {
            Some(announced) if announced.fields().len() != form.schema().fields().len() => {
                return Err(Error::state(SqlState::FEATURE_NOT_SUPPORTED, "cached plan must not change result type")
                    .with_hint("prepare the statement again"));
            }
            Some(announced) => {
                // Without the kept plan, a value that does not fit its parameter's type has been planned for.
                let changed = announced
                    .fields()
                    .iter()
                    .zip(form.schema().fields())
                    .find(|(then, now)| then.data_type() != now.data_type());
                if let (Some((then, now)), None) = (changed, &scope.slot) {
                    let text = format!(
                        "a parameter's value makes the column \"{}\" {}, which was announced as {}",
                        then.name(),
                        now.data_type(),
                        then.data_type()
                    );
                    return Err(Error::state(SqlState::DATATYPE_MISMATCH, text).with_hint(
                        "cast the parameter in the statement to the type its values have, as in $1::numeric",
                    ));
                }
                ClientForm::announced(announced)
            }
            None => form,
        };
        Ok((plan, form))
    }
}

/// How many rows a plan is known to give.
pub(super) fn exact_rows(plan: &RunnablePlan) -> Result<Option<usize>> {
    Ok(match plan.plan().partition_statistics(None)?.num_rows {
        datafusion::common::stats::Precision::Exact(rows) => Some(rows),
        _ => None,
    })
}

impl Session {
    /// The newest moment; `None` in a transaction block, which sees a moment of its own and its own changes.
    pub fn moment(&self) -> Option<Moment> {
        self.inner.current.lock().is_none().then(|| self.newest())
    }

    fn newest(&self) -> Moment {
        Moment { snapshot: self.inner.engine.store.now(), now_us: Utc::now().timestamp_micros() }
    }

    /// Opens a prepared query with one set of values: chooses its moment and plans it.
    pub async fn open(
        &self,
        prepared: &Prepared,
        params: Params,
        transaction: Option<TransactionId>,
        options: OpenOptions,
    ) -> Result<Opened> {
        let session = &self.inner;
        session.check_open()?;
        let values = super::positional(params)?;
        let values = conform(values, &prepared.parameters)?;
        let statement = &prepared.statement;
        let progress = options.progress.clone().unwrap_or_default();
        let ticket = session.ticket_of(&prepared.sql, progress);
        let work = Box::pin(async {
            let StatementAst::Query(query) = &statement.kind else {
                return Err(Error::internal("a statement that is no query cannot be opened"));
            };
            check_params(statement, &values)?;
            let given = Given::to(prepared, values);
            let (scope, moment, mut working) = self.scope_at(transaction, options.at, given).await?;
            let txn = scope.txn.clone();
            let scope = Scope { progress: ticket.progress(), ..scope };
            let announced = prepared.result_schema.clone();
            if let Some(rows) = crate::fast::query(&scope, query, announced.as_ref()).await? {
                let (schema, content) = (rows.schema.clone(), Content::Read(rows.collect().await?));
                working.iter_mut().for_each(Work::done);
                return Ok((schema, moment, txn, content));
            }
            let (plan, form) = session.plan_query(&scope, query, announced).await?;
            let shared = match options.shares_max {
                0 | 1 => None,
                shares_max => plan.shared(shares_max, options.share_rows_min)?,
            };
            let content = match shared {
                Some(plan) => {
                    let shares = plan.plan().properties().output_partitioning().partition_count();
                    Content::Shared { plan, shares }
                }
                None => Content::Whole { rows: exact_rows(&plan)?, plan, taken: AtomicBool::new(false) },
            };
            working.iter_mut().for_each(Work::done);
            Ok((form.schema().clone(), moment, txn, content))
        });
        match ticket.run(work).await {
            Ok((schema, moment, txn, content)) => {
                let progress = ticket.progress();
                Ok(Opened { session: self.clone(), sql: prepared.sql.clone(), schema, moment, progress, txn, content })
            }
            Err(error) => {
                if let Ok(Some(txn)) = session.transaction(transaction) {
                    txn.fail();
                }
                Err(place(error, statement))
            }
        }
    }

    /// What a query sees: its transaction, or a moment.
    async fn scope_at(
        &self,
        transaction: Option<TransactionId>,
        at: Option<Moment>,
        given: Given,
    ) -> Result<(Scope, Option<Moment>, Option<Work>)> {
        let session = &self.inner;
        if let Some(txn) = session.transaction(transaction)? {
            let work = session.work(&txn)?;
            return Ok((session.scope(Some(&txn), Some(given)).await?, None, Some(work)));
        }
        let store = &session.engine.store;
        let moment = at.unwrap_or_else(|| self.newest());
        if moment.snapshot > store.now() {
            // Nobody got such a moment from this database, or it was restored to an earlier one.
            return Err(Error::state(
                SqlState::INVALID_CURSOR_NAME,
                "the result's moment lies after everything this database knows",
            ));
        }
        let now = DateTime::from_timestamp_micros(moment.now_us)
            .ok_or_else(|| Error::state(SqlState::INVALID_CURSOR_NAME, "the result's moment is out of range"))?;
        let snapshot = store.snapshot_at(moment.snapshot).await.map_err(Error::classified)?;
        let catalog = session.engine.catalog.of(store, &snapshot).await?;
        Ok((session.scope_over(Reader::Snapshot(snapshot), None, catalog, now, Some(given)), Some(moment), None))
    }
}

//! Scripts: several statements in one text, as PostgreSQL's simple query protocol runs them.
//!
//! Outside a transaction block, the statements between two transaction commands are one implicit transaction: either all of
//! them count or none. `BEGIN` makes the implicit transaction a block that outlives the script, `COMMIT` and `ROLLBACK`
//! end it, and what follows begins a new one. The first error ends the script. The last statement's outcome is the script's.
//!
//! # Invariants
//! - SCRIPT-1 a script that fails outside a transaction block leaves nothing of its current transaction. Test:
//!   `a_failing_script_leaves_nothing`.
//! - SCRIPT-2 an error says which statement failed, and its position is one in the whole script. Test:
//!   `errors_name_their_statement`.

use std::sync::Arc;

use base::SqlState;
use futures::StreamExt;

use super::{Given, Prepared, Session};
use crate::door::{Outcome, PrepareOptions, TransactionId};
use crate::parse::statement::{self as st, Statement, StatementAst};
use crate::progress::Progress;
use crate::transaction::{Status, Txn};
use crate::{Error, Result};

/// A text with one statement or several.
#[derive(Clone, Debug)]
pub enum Parsed {
    /// One, typed.
    Statement(Prepared),
    /// Several, not typed: a later one may need what an earlier one makes.
    Script(Script),
}

/// Several statements.
#[derive(Clone, Debug)]
pub struct Script {
    /// The whole text.
    pub sql: Arc<str>,
    statements: Vec<Arc<Statement>>,
}

impl Script {
    pub(super) fn new(sql: &str, statements: Vec<Statement>) -> Self {
        Self { sql: Arc::from(sql), statements: statements.into_iter().map(Arc::new).collect() }
    }

    /// Where the second statement begins, in characters from 1.
    pub(super) fn second(&self) -> usize {
        self.statements.get(1).map_or(1, |statement| statement.position)
    }
}

/// The implicit transaction of a script, rolled back when it is dropped open.
struct Implicit<'a> {
    session: &'a Session,
    txn: Option<Arc<Txn>>,
}

impl Implicit<'_> {
    /// The transaction the next statement runs in.
    async fn open(&mut self) -> Result<TransactionId> {
        let inner = &self.session.inner;
        if let Some(txn) = &self.txn {
            return Ok(txn.id);
        }
        let read_only = inner.settings.read().default_read_only();
        let txn = inner.open_transaction(true, read_only, None).await?;
        inner.handles.lock().insert(txn.id, txn.clone());
        let id = txn.id;
        self.txn = Some(txn);
        Ok(id)
    }

    fn take(&mut self) -> Option<Arc<Txn>> {
        let txn = self.txn.take()?;
        self.session.inner.handles.lock().remove(&txn.id);
        Some(txn)
    }

    async fn commit(&mut self) -> Result<()> {
        match self.take() {
            Some(txn) => {
                let inner = &self.session.inner;
                inner.commit(&txn).await.inspect_err(|error| inner.engine.queries.counters.told(error))
            }
            None => Ok(()),
        }
    }

    fn roll_back(&mut self) {
        if let Some(txn) = self.take() {
            self.session.inner.abandon(&txn);
        }
    }
}

impl Drop for Implicit<'_> {
    fn drop(&mut self) {
        self.roll_back();
    }
}

impl Session {
    /// Parses a text; one statement is typed too.
    pub async fn parse(&self, sql: &str, options: PrepareOptions) -> Result<Parsed> {
        let result = self.parse_inner(sql, options).await;
        if result.is_err() {
            self.doom(options.transaction);
        }
        result
    }

    /// Runs a script; answers with what its last statement did. `progress` is told of the statement that runs.
    pub async fn run_script(
        &self,
        script: &Script,
        transaction: Option<TransactionId>,
        progress: Arc<Progress>,
    ) -> Result<Outcome> {
        let mut implicit = Implicit { session: self, txn: None };
        let mut last = Outcome::Done { tag: String::new() };
        let count = script.statements.len();
        for (number, statement) in script.statements.iter().enumerate() {
            // Rows that nobody will see are computed all the same: they may fail, or call functions.
            let drained = match std::mem::replace(&mut last, Outcome::Done { tag: String::new() }) {
                Outcome::Rows(mut rows) => loop {
                    match rows.stream.next().await {
                        Some(Ok(_)) => {}
                        Some(Err(error)) => break Err((number - 1, error)),
                        None => break Ok(()),
                    }
                },
                Outcome::Affected { .. } | Outcome::Done { .. } => Ok(()),
            };
            let outcome = match drained {
                Ok(()) => {
                    let is_last = number + 1 == count;
                    let done = self.run_one(&mut implicit, statement, transaction, is_last, &progress).await;
                    done.map_err(|error| (number, error))
                }
                Err(failed) => Err(failed),
            };
            last = match outcome {
                Ok(outcome) => outcome,
                Err((at, error)) => {
                    let undone = implicit.txn.is_some();
                    implicit.roll_back();
                    if !undone {
                        // The block that the script runs in: its rows may have failed after the statement itself had succeeded.
                        self.doom(transaction);
                    }
                    return Err(blame(error, &script.statements[at], at, count, undone));
                }
            };
        }
        // What the last statement reads was pinned when it was planned, so its rows outlive the transaction.
        implicit
            .commit()
            .await
            .map_err(|error| error.with_detail("The script's statements were rolled back together."))?;
        Ok(last)
    }

    async fn run_one(
        &self,
        implicit: &mut Implicit<'_>,
        statement: &Arc<Statement>,
        transaction: Option<TransactionId>,
        is_last: bool,
        progress: &Arc<Progress>,
    ) -> Result<Outcome> {
        let inner = &self.inner;
        let run = |handle| inner.execute(statement, Given::default(), handle, None, progress.clone());
        if transaction.is_some() || inner.current.lock().is_some() {
            return run(transaction).await;
        }
        match &statement.kind {
            StatementAst::Begin(modes) => match implicit.take() {
                Some(txn) => self.promote(txn, modes),
                None => run(None).await,
            },
            StatementAst::Commit { chain: false } => {
                implicit.commit().await?;
                Ok(Outcome::Done { tag: "COMMIT".to_owned() })
            }
            StatementAst::Rollback { chain: false } => {
                implicit.roll_back();
                Ok(Outcome::Done { tag: "ROLLBACK".to_owned() })
            }
            StatementAst::Commit { .. }
            | StatementAst::Rollback { .. }
            | StatementAst::RollbackTo(_)
            | StatementAst::Savepoint(_)
            | StatementAst::Release(_) => Err(Error::state(
                SqlState::NO_ACTIVE_TRANSACTION,
                format!("{} can only be used in transaction blocks", statement.kind.name()),
            )),
            // Alone in its transaction, it can be tried again when it loses against another.
            _ if is_last && implicit.txn.is_none() => run(None).await,
            _ => {
                let handle = implicit.open().await?;
                run(Some(handle)).await
            }
        }
    }

    /// `BEGIN` in the middle of a script: the implicit transaction becomes the session's block.
    fn promote(&self, txn: Arc<Txn>, modes: &st::TransactionModes) -> Result<Outcome> {
        if let Err(error) = super::apply_modes(&txn, modes) {
            self.inner.abandon(&txn);
            return Err(error);
        }
        *self.inner.current.lock() = Some(txn);
        Ok(Outcome::Done { tag: "BEGIN".to_owned() })
    }

    /// As in PostgreSQL, a statement that cannot be prepared dooms the transaction it was meant for.
    pub(super) fn doom(&self, transaction: Option<TransactionId>) {
        if let Ok(Some(txn)) = self.inner.transaction(transaction) {
            if txn.status() == Status::Active {
                txn.fail();
            }
        }
    }
}

/// Says which statement of the script failed.
fn blame(mut error: Error, statement: &Statement, at: usize, count: usize, undone: bool) -> Error {
    // Without a more precise place, the statement's beginning.
    error.position.get_or_insert(statement.position);
    let after = if undone { "; the statements since the last transaction command were rolled back" } else { "" };
    let which = format!("Statement {} of {count}, {}, failed{after}.", at + 1, statement.kind.name());
    error.detail = Some(match error.detail.take() {
        Some(detail) => format!("{detail} {which}"),
        None => which,
    });
    error
}

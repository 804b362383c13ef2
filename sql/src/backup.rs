//! `BACKUP TO 'url'`: asks the store for a backup of everything, while it works.
//!
//! The statement answers with one row: the moment up to which everything is in the backup, its size, and how much of it
//! had to be copied. How a backup is made is the store's business.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use base::SqlState;
use parking_lot::Mutex;
use storage::OnProgress;

use crate::plan::Scope;
use crate::session::Produced;
use crate::{Error, Result};

/// How often the server's log says how far a backup is.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// The columns of the answer.
pub(crate) fn schema() -> SchemaRef {
    let number = |name: &str| Field::new(name, DataType::Int64, false);
    Arc::new(Schema::new(vec![
        Field::new("as_of", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false),
        number("files"),
        number("bytes"),
        number("copied_files"),
        number("copied_bytes"),
    ]))
}

pub(crate) async fn run(scope: &Scope, url: &str) -> Result<Produced> {
    let session = &scope.session;
    if !session.principal.is_admin() {
        return Err(Error::state(SqlState::INSUFFICIENT_PRIVILEGE, "permission denied to back up the database"));
    }
    if scope.txn.as_ref().is_some_and(|txn| txn.interactive) {
        return Err(Error::state(SqlState::ACTIVE_TRANSACTION, "BACKUP cannot run inside a transaction block"));
    }
    if !url.contains("://") && !Path::new(url).is_absolute() {
        return Err(Error::state(
            SqlState::INVALID_PARAMETER_VALUE,
            format!("\"{url}\" is not an absolute path on the server"),
        )
        .with_hint("write BACKUP TO '/folder' or BACKUP TO 's3://bucket/prefix'"));
    }
    let told = Mutex::new(tokio::time::Instant::now());
    let progress: OnProgress = Arc::new(move |progress| {
        let mut told = told.lock();
        if told.elapsed() >= TOLD_EVERY {
            *told = tokio::time::Instant::now();
            tracing::info!(files = progress.objects, of = progress.objects_total, bytes = progress.bytes, "backing up");
        }
    });
    let report = session.engine.store.backup(url, progress).await.map_err(Error::classified)?;
    tracing::info!(url, files = report.objects, bytes = report.bytes, copied_bytes = report.copied_bytes, "backed up");
    let number = |value: u64| Arc::new(Int64Array::from(vec![i64::try_from(value).unwrap_or(i64::MAX)])) as ArrayRef;
    let columns = vec![
        Arc::new(TimestampMicrosecondArray::from(vec![report.at.0]).with_timezone("UTC")) as ArrayRef,
        number(report.objects),
        number(report.bytes),
        number(report.copied_objects),
        number(report.copied_bytes),
    ];
    Ok(Produced::batches(schema(), vec![RecordBatch::try_new(schema(), columns)?]))
}

//! `DoPut`: updates, bound parameters and bulk loads.
//!
//! # Invariants
//! - PUT-1 an update is answered without waiting for the client to finish its stream when nothing more can come: C++ clients read the
//!   answer first and close afterwards. Test: `tests::updates_do_not_wait_for_the_client_to_close`.
//! - PUT-2 all rows of one stream are one execution, so that `executemany` is atomic. Test: `tests::executemany_is_atomic`.
//! - PUT-3 a bulk load is streamed, never collected. Held by construction ([`crate::decode::batches`]).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::sql::{
    Any, Command, CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementIngest,
    CommandStatementUpdate, DoPutPreparedStatementResult, DoPutUpdateResult, TableDefinitionOptions, TableExistsOption,
    TableNotExistOption,
};
use arrow_flight::{FlightData, FlightDescriptor, PutResult};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use sql::{IfExists, IfMissing, IngestRequest, Outcome, Params};
use tonic::{Status, Streaming};

use crate::decode::{Decoder, Incoming, batches, broken_off, read_all, read_schema};
use crate::error::{Error, Result};
use crate::options::Limits;
use crate::request::Call;
use crate::service::{Bound, Inner, params_of, quoted_path, read, read_command};

/// How long a client may take to close its stream after our answer.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

type Answer = BoxStream<'static, Result<PutResult, Status>>;

/// Does a `DoPut`.
pub(crate) async fn put(inner: &Inner, call: &Call, mut stream: Streaming<FlightData>) -> Result<Answer> {
    let first = stream.message().await.map_err(broken_off)?.ok_or_else(|| {
        Error::Protocol(
            "the stream is empty: it names no command (drivers send nothing for a source without rows)".to_owned(),
        )
    })?;
    let descriptor = first
        .flight_descriptor
        .clone()
        .ok_or_else(|| Error::Protocol("the first message has no descriptor".to_owned()))?;
    let counters = Arc::clone(&inner.counters);
    let incoming: Incoming = futures::stream::iter([Ok(first)])
        .chain(stream)
        .inspect_ok(move |data| {
            let bytes = data.data_header.len() + data.data_body.len();
            counters.bytes_received.fetch_add(bytes as u64, Ordering::Relaxed);
        })
        .boxed();
    if descriptor.r#type() == DescriptorType::Path {
        return put_path(inner, call, &descriptor, incoming).await;
    }
    let any = Any::decode(&*descriptor.cmd)
        .map_err(|_| Error::Protocol("the descriptor's command is not a Flight SQL command".to_owned()))?;
    match read_command(any)? {
        Command::CommandStatementUpdate(command) => update(inner, call, command, incoming).await,
        Command::CommandPreparedStatementUpdate(command) => update_prepared(inner, call, command, incoming).await,
        Command::CommandPreparedStatementQuery(command) => bind(inner, call, command, incoming).await,
        Command::CommandStatementIngest(command) => ingest(inner, call, command, incoming).await,
        Command::CommandStatementSubstraitPlan(_) => Err(Error::Unsupported("a Substrait plan".to_owned())),
        other => Err(Error::Unsupported(format!("DoPut with the command {}", other.type_url()))),
    }
}

async fn update(inner: &Inner, call: &Call, command: CommandStatementUpdate, incoming: Incoming) -> Result<Answer> {
    let bound = Box::pin(inner.plan(call, &command.query, command.transaction_id.as_ref())).await?;
    let count = run(&bound).await?;
    Ok(counted(count, incoming))
}

async fn update_prepared(
    inner: &Inner,
    call: &Call,
    command: CommandPreparedStatementUpdate,
    mut incoming: Incoming,
) -> Result<Answer> {
    let (mut bound, plan) = inner.prepared(call, &command.prepared_statement_handle)?;
    if plan.parameters.fields().is_empty() {
        // PUT-1
        let count = run(&bound).await?;
        return Ok(counted(count, incoming));
    }
    let (batch, rest) = read_parameters(inner, &mut incoming).await?;
    match batch {
        Some(batch) if batch.num_rows() == 0 => {
            // `executemany` with no rows executes nothing.
            return Ok(counted(0, rest));
        }
        Some(batch) => bound.params = params_of(Some(batch), &plan)?,
        // Nothing came with this request: the values of an earlier bind count.
        None => {}
    }
    let count = run(&bound).await?;
    Ok(counted(count, rest))
}

async fn bind(
    inner: &Inner,
    call: &Call,
    command: CommandPreparedStatementQuery,
    mut incoming: Incoming,
) -> Result<Answer> {
    let (_, statement) = inner.statement(call, &command.prepared_statement_handle)?;
    let (batch, rest) = read_parameters(inner, &mut incoming).await?;
    *statement.bound.lock() = params_of(batch, &statement.plan)?;
    // Java uses the handle of the answer unconditionally, so it is always there.
    let result = DoPutPreparedStatementResult { prepared_statement_handle: Some(statement.handle.to_bytes()) };
    Ok(answer(result.encode_to_vec().into(), rest))
}

/// Reads the bound values; a schema without fields says that there are none, and that nothing follows.
async fn read_parameters(inner: &Inner, incoming: &mut Incoming) -> Result<(Option<RecordBatch>, Incoming)> {
    let mut whole = std::mem::replace(incoming, futures::stream::empty().boxed());
    let mut decoder = Decoder::new(inner.decode_limits());
    let batch = match read_schema(&mut whole, &mut decoder).await? {
        Some(schema) if !schema.fields().is_empty() => read_all(&mut whole, decoder).await?,
        Some(_) | None => None,
    };
    Ok((batch, whole))
}

/// Runs an update and counts its rows.
async fn run(bound: &Bound) -> Result<i64> {
    bound.check()?;
    Ok(match run_or_read(bound).await? {
        Outcome::Affected { rows, .. } => i64::try_from(rows).unwrap_or(i64::MAX),
        // The JDBC driver expects 0 of a DDL statement.
        Outcome::Done { .. } => 0,
        Outcome::Rows(mut rows) => {
            let mut count = 0;
            while let Some(batch) = rows.stream.next().await {
                let batch = batch.map_err(|error| Error::of_statement(error, bound.what.sql()))?;
                count += i64::try_from(batch.num_rows()).unwrap_or(0);
            }
            count
        }
    })
}

/// Queries may come as updates too: their rows are counted.
async fn run_or_read(bound: &Bound) -> Result<Outcome> {
    if let Some(plan) = bound.query()
        && matches!(bound.params, Params::Batch(_))
    {
        let planned = bound.open(plan, &Limits { endpoints_max: 1, ..Limits::default() }, Arc::default()).await?;
        return Ok(Outcome::Rows(read(&planned, 0).await?));
    }
    bound.execute(Arc::default()).await
}

async fn ingest(inner: &Inner, call: &Call, command: CommandStatementIngest, incoming: Incoming) -> Result<Answer> {
    if let Some(option) = command.options.keys().min() {
        return Err(Error::Unsupported(format!("the ingest option \"{option}\"")));
    }
    let (if_missing, if_exists) = modes(command.table_definition_options.as_ref())?;
    let (owner, transaction) = inner.transaction(call, command.transaction_id.as_ref())?;
    let request = IngestRequest {
        catalog: command.catalog,
        schema: command.schema,
        table: command.table,
        temporary: command.temporary,
        if_missing,
        if_exists,
        // ADBC never says which transaction a load belongs to; its user means the one that is open.
        transaction: transaction.map(|(_, id)| id).or_else(|| owner.only_transaction()),
    };
    let count = load(inner, &owner, request, incoming).await?;
    Ok(counted(count, futures::stream::empty().boxed()))
}

/// A plain Flight upload: appends to the table of the path, and makes it if need be.
async fn put_path(inner: &Inner, call: &Call, descriptor: &FlightDescriptor, incoming: Incoming) -> Result<Answer> {
    quoted_path(&descriptor.path)?;
    let mut parts: Vec<String> = match descriptor.path.as_slice() {
        [one] => one.split('.').map(str::to_owned).collect(),
        path => path.to_vec(),
    };
    let table = parts.pop().unwrap_or_default();
    let request = IngestRequest {
        table,
        schema: parts.pop(),
        catalog: parts.pop(),
        temporary: false,
        if_missing: IfMissing::Create,
        if_exists: IfExists::Append,
        transaction: call.client.only_transaction(),
    };
    let count = load(inner, &call.client, request, incoming).await?;
    Ok(counted(count, futures::stream::empty().boxed()))
}

async fn load(
    inner: &Inner,
    owner: &Arc<crate::sessions::Client>,
    request: IngestRequest,
    mut incoming: Incoming,
) -> Result<i64> {
    if request.table.is_empty() {
        return Err(Error::Protocol("the ingest names no table".to_owned()));
    }
    let mut decoder = Decoder::new(inner.decode_limits());
    let schema = read_schema(&mut incoming, &mut decoder)
        .await?
        .ok_or_else(|| Error::Protocol("the stream ended before its schema".to_owned()))?;
    if schema.fields().is_empty() {
        return Err(Error::Invalid("the load has no columns".to_owned()));
    }
    let rows = owner.session.ingest(request, schema, batches(incoming, decoder)).await?;
    inner.counters.rows_ingested.fetch_add(rows, Ordering::Relaxed);
    Ok(i64::try_from(rows).unwrap_or(i64::MAX))
}

fn modes(options: Option<&TableDefinitionOptions>) -> Result<(IfMissing, IfExists)> {
    let Some(options) = options else {
        // Nothing was said: the table is expected to exist.
        return Ok((IfMissing::Fail, IfExists::Append));
    };
    let if_missing = match options.if_not_exist() {
        TableNotExistOption::Create => IfMissing::Create,
        TableNotExistOption::Fail => IfMissing::Fail,
        TableNotExistOption::Unspecified => {
            return Err(Error::Protocol("the ingest does not say what to do when the table is missing".to_owned()));
        }
    };
    let if_exists = match options.if_exists() {
        TableExistsOption::Fail => IfExists::Fail,
        TableExistsOption::Append => IfExists::Append,
        TableExistsOption::Replace => IfExists::Replace,
        TableExistsOption::Unspecified => {
            return Err(Error::Protocol("the ingest does not say what to do when the table exists".to_owned()));
        }
    };
    Ok((if_missing, if_exists))
}

fn counted(record_count: i64, rest: Incoming) -> Answer {
    answer(DoPutUpdateResult { record_count }.encode_to_vec().into(), rest)
}

/// The one result, and then patience: ending the answer while the client is still writing would reset its stream.
fn answer(app_metadata: Bytes, rest: Incoming) -> Answer {
    let drain = futures::stream::once(async move {
        let _ = tokio::time::timeout(CLOSE_WAIT, rest.for_each(|_| std::future::ready(()))).await;
    });
    let drained = drain.filter_map(|()| std::future::ready(None));
    futures::stream::iter([Ok(PutResult { app_metadata })]).chain(drained).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ingest_modes() {
        let of = |missing: TableNotExistOption, exists: TableExistsOption| {
            modes(Some(&TableDefinitionOptions { if_not_exist: missing as i32, if_exists: exists as i32 }))
        };
        use {TableExistsOption as E, TableNotExistOption as M};
        assert_eq!(of(M::Create, E::Fail).unwrap(), (IfMissing::Create, IfExists::Fail));
        assert_eq!(of(M::Fail, E::Append).unwrap(), (IfMissing::Fail, IfExists::Append));
        assert_eq!(of(M::Create, E::Replace).unwrap(), (IfMissing::Create, IfExists::Replace));
        assert_eq!(of(M::Create, E::Append).unwrap(), (IfMissing::Create, IfExists::Append));
        assert_eq!(modes(None).unwrap(), (IfMissing::Fail, IfExists::Append));
        assert!(of(M::Unspecified, E::Append).is_err());
        assert!(of(M::Create, E::Unspecified).is_err());
    }
}

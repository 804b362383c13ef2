//! Actions: prepared statements, transactions, savepoints, cancelling, renewing and session options.
//!
//! # Invariants
//! - ACTION-1 an unknown action is `UNIMPLEMENTED`, because drivers probe. Test: `tests::unknown_actions_are_unimplemented`.
//! - ACTION-2 asking for or closing a session never makes one. Test: `tests::probing_makes_no_session`.

use arrow::datatypes::Schema;
use arrow_flight::sql::{
    ActionBeginSavepointRequest, ActionBeginSavepointResult, ActionBeginTransactionRequest,
    ActionBeginTransactionResult, ActionCancelQueryRequest, ActionCancelQueryResult,
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionEndSavepointRequest,
    ActionEndTransactionRequest, Any, EndTransaction, ProstMessageExt,
};
use arrow_flight::{
    Action, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo, RenewFlightEndpointRequest,
};
use base::{Classify, ErrorKind, SqlState};
use bytes::Bytes;
use prost::Message;
use sql::OptionValue;
use std::collections::HashMap;

use crate::encode::schema_bytes;
use crate::error::{Error, Result};
use crate::messages::{
    CloseSessionResult, CloseSessionStatus, GetSessionOptionsResult, PreparedStatementResult, SessionOptionValue,
    SetSessionOptionError, SetSessionOptionFailure, SetSessionOptionsRequest, SetSessionOptionsResult,
    session_option_value::Value,
};
use crate::request::Call;
use crate::service::{Inner, set_expiration};
use crate::sessions::Handle;
use crate::ticket::{Kind, Ticket};

/// What `ListActions` says.
pub(crate) const TYPES: [(&str, &str); 13] = [
    (
        "CreatePreparedStatement",
        "Prepares a statement. ActionCreatePreparedStatementRequest → ActionCreatePreparedStatementResult",
    ),
    ("ClosePreparedStatement", "Forgets a prepared statement. ActionClosePreparedStatementRequest → nothing"),
    ("BeginTransaction", "Begins a transaction. ActionBeginTransactionRequest → ActionBeginTransactionResult"),
    ("EndTransaction", "Commits or rolls back a transaction. ActionEndTransactionRequest → nothing"),
    ("BeginSavepoint", "Sets a savepoint. ActionBeginSavepointRequest → ActionBeginSavepointResult"),
    ("EndSavepoint", "Releases a savepoint or rolls back to it. ActionEndSavepointRequest → nothing"),
    (
        "CancelQuery",
        "Cancels a query (deprecated, use CancelFlightInfo). ActionCancelQueryRequest → ActionCancelQueryResult",
    ),
    ("CancelFlightInfo", "Cancels a query. CancelFlightInfoRequest → CancelFlightInfoResult"),
    ("RenewFlightEndpoint", "Extends the time to fetch a result. RenewFlightEndpointRequest → FlightEndpoint"),
    ("SetSessionOptions", "Sets options of the session. SetSessionOptionsRequest → SetSessionOptionsResult"),
    ("GetSessionOptions", "Reads the options of the session. GetSessionOptionsRequest → GetSessionOptionsResult"),
    ("CloseSession", "Ends the session. CloseSessionRequest → CloseSessionResult"),
    ("CreatePreparedSubstraitPlan", "Refused: Substrait plans are not supported"),
];

/// Actions that must not make a session as a side effect (ACTION-2).
pub(crate) fn only_existing_sessions(action: &str) -> bool {
    matches!(action, "GetSessionOptions" | "CloseSession")
}

/// Reads the request of an action that travels in an `Any`.
fn unpack<M: ProstMessageExt>(action: &Action) -> Result<M> {
    let malformed = || Error::Protocol(format!("the body of {} is not a {}", action.r#type, M::type_url()));
    let any = Any::decode(&*action.body).map_err(|_| malformed())?;
    any.unpack().ok().flatten().ok_or_else(malformed)
}

fn pack<M: ProstMessageExt>(message: &M) -> Vec<Bytes> {
    vec![message.as_any().encode_to_vec().into()]
}

fn bare<M: Message>(message: &M) -> Vec<Bytes> {
    vec![message.encode_to_vec().into()]
}

/// Does an action; answers with the bodies of its results.
pub(crate) async fn act(inner: &Inner, call: &Call, action: Action) -> Result<Vec<Bytes>> {
    match action.r#type.as_str() {
        "CreatePreparedStatement" => prepare(inner, call, unpack(&action)?).await,
        "ClosePreparedStatement" => {
            let request: ActionClosePreparedStatementRequest = unpack(&action)?;
            // Closing what is gone already is what the client wanted.
            if let Ok((owner, statement)) = inner.statement(call, &request.prepared_statement_handle) {
                owner.forget_statement(statement.handle);
            }
            Ok(Vec::new())
        }
        "BeginTransaction" => {
            let _: ActionBeginTransactionRequest = unpack(&action)?;
            let handle = call.client.begin().await?;
            Ok(pack(&ActionBeginTransactionResult { transaction_id: handle.to_bytes() }))
        }
        "EndTransaction" => end_transaction(inner, call, unpack(&action)?).await,
        "BeginSavepoint" => {
            let request: ActionBeginSavepointRequest = unpack(&action)?;
            let (owner, transaction) = inner.transaction(call, Some(&request.transaction_id))?;
            let (handle, _) =
                transaction.ok_or_else(|| Error::Protocol("a savepoint needs a transaction".to_owned()))?;
            let savepoint = owner.begin_savepoint(handle, &request.name).await?;
            Ok(pack(&ActionBeginSavepointResult { savepoint_id: savepoint.to_bytes() }))
        }
        "EndSavepoint" => end_savepoint(inner, call, unpack(&action)?).await,
        "CancelQuery" => {
            let request: ActionCancelQueryRequest = unpack(&action)?;
            let info = FlightInfo::decode(&*request.info)?;
            let status = cancel(inner, call, &info)?;
            Ok(pack(&ActionCancelQueryResult { result: status as i32 }))
        }
        "CancelFlightInfo" => {
            let request = CancelFlightInfoRequest::decode(&*action.body)?;
            let info = request.info.ok_or_else(|| Error::Protocol("CancelFlightInfo names no info".to_owned()))?;
            let status = cancel(inner, call, &info)?;
            Ok(bare(&CancelFlightInfoResult { status: status as i32 }))
        }
        "RenewFlightEndpoint" => renew(inner, call, RenewFlightEndpointRequest::decode(&*action.body)?),
        "SetSessionOptions" => set_options(call, SetSessionOptionsRequest::decode(&*action.body)?).await,
        "GetSessionOptions" => Ok(get_options(call)),
        "CloseSession" => {
            inner.registry.close(&call.client).await;
            inner.results.forget(&[call.client.number]);
            Ok(bare(&CloseSessionResult { status: CloseSessionStatus::Closed as i32 }))
        }
        "CreatePreparedSubstraitPlan" => Err(Error::Unsupported("a Substrait plan".to_owned())),
        other => Err(Error::Unsupported(format!("the action \"{other}\""))),
    }
}

async fn prepare(inner: &Inner, call: &Call, request: ActionCreatePreparedStatementRequest) -> Result<Vec<Bytes>> {
    let (owner, prepared, transaction) =
        Box::pin(inner.plan_one(call, &request.query, request.transaction_id.as_ref())).await?;
    // Old JDBC drivers take a dataset schema for "this is a query", so updates have none.
    let dataset_schema = match &prepared.result_schema {
        Some(_) if !prepared.is_update => prepared.announced()?,
        _ => Bytes::new(),
    };
    let parameters: &Schema = &prepared.parameters;
    let parameter_schema = schema_bytes(parameters)?;
    let is_update = prepared.is_update || prepared.result_schema.is_none();
    let limit = inner.limits.statements_per_session_max;
    let statement = owner.keep_statement(prepared, transaction, limit)?;
    let result = PreparedStatementResult {
        prepared_statement_handle: statement.handle.to_bytes(),
        dataset_schema,
        parameter_schema,
        is_update: Some(is_update),
    };
    Ok(vec![result.as_any().encode_to_vec().into()])
}

async fn end_transaction(inner: &Inner, call: &Call, request: ActionEndTransactionRequest) -> Result<Vec<Bytes>> {
    let commit = match request.action() {
        EndTransaction::Commit => true,
        EndTransaction::Rollback => false,
        EndTransaction::Unspecified => {
            return Err(Error::Protocol("EndTransaction says neither commit nor roll back".to_owned()));
        }
    };
    let (what, state) = ("transaction", SqlState::NO_ACTIVE_TRANSACTION);
    let handle = Handle::from_bytes(&request.transaction_id).ok_or_else(|| Error::unknown(what, state))?;
    let owner = inner.owner_of(call, handle, what, state)?;
    owner.end(handle, commit).await?;
    Ok(Vec::new())
}

async fn end_savepoint(inner: &Inner, call: &Call, request: ActionEndSavepointRequest) -> Result<Vec<Bytes>> {
    // The enum of the protocol is not exported: 1 releases, 2 rolls back.
    let release = match request.action {
        1 => true,
        2 => false,
        _ => return Err(Error::Protocol("EndSavepoint says neither release nor roll back".to_owned())),
    };
    let (what, state) = ("savepoint", SqlState::INVALID_SAVEPOINT);
    let handle = Handle::from_bytes(&request.savepoint_id).ok_or_else(|| Error::unknown(what, state))?;
    let owner = inner.owner_of(call, handle, what, state)?;
    owner.end_savepoint(handle, release).await?;
    Ok(Vec::new())
}

/// Stops whatever the tickets of an info stand for.
fn cancel(inner: &Inner, call: &Call, info: &FlightInfo) -> Result<CancelStatus> {
    let mut cancelled = false;
    for ticket in info.endpoint.iter().filter_map(|endpoint| endpoint.ticket.as_ref()) {
        if let Some(ticket) = Ticket::decode_any(&ticket.ticket)? {
            cancelled |= inner.results.cancel(ticket.uuid(), &call.client);
        }
    }
    if let Some(descriptor) = &info.flight_descriptor {
        cancelled |= inner.jobs.cancel(descriptor, &call.client.principal);
    }
    Ok(if cancelled { CancelStatus::Cancelled } else { CancelStatus::NotCancellable })
}

fn renew(inner: &Inner, call: &Call, request: RenewFlightEndpointRequest) -> Result<Vec<Bytes>> {
    let mut endpoint =
        request.endpoint.ok_or_else(|| Error::Protocol("RenewFlightEndpoint names no endpoint".to_owned()))?;
    let ticket = endpoint.ticket.as_ref().ok_or_else(|| Error::Protocol("the endpoint has no ticket".to_owned()))?;
    if let Some(ticket) = Ticket::decode_any(&ticket.ticket)? {
        let there = inner.results.renew(ticket.uuid(), &call.client.principal);
        // What the ticket itself can bring back needs nothing on the server.
        let self_sufficient = match ticket.kind() {
            Kind::Query => !ticket.incomplete,
            Kind::Empty => true,
            Kind::Held | Kind::Share => false,
        };
        if !there && !self_sufficient {
            return Err(Error::unknown("result", SqlState::INVALID_CURSOR_NAME));
        }
    }
    set_expiration(&mut endpoint, inner.results.ttl());
    Ok(bare(&endpoint))
}

async fn set_options(call: &Call, request: SetSessionOptionsRequest) -> Result<Vec<Bytes>> {
    let mut errors = HashMap::new();
    // In a fixed order: `catalog` before `schema` when both are given.
    let mut options: Vec<_> = request.session_options.into_iter().collect();
    options.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, value) in options {
        let outcome = match option_value(value) {
            Some(value) => call.client.session.set_option(&name, &value),
            None => call.client.session.run(&format!("RESET \"{}\"", name.replace('"', "\"\""))).await.map(|_| ()),
        };
        if let Err(error) = outcome {
            tracing::debug!(option = name, error = %error, "a session option was refused");
            errors.insert(name, SetSessionOptionFailure { value: option_error(&error) as i32 });
        }
    }
    Ok(bare(&SetSessionOptionsResult { errors }))
}

fn option_value(value: SessionOptionValue) -> Option<OptionValue> {
    value.value.map(|value| match value {
        Value::Text(text) => OptionValue::Text(text),
        Value::Flag(flag) => OptionValue::Flag(flag),
        Value::Number(number) => OptionValue::Number(number),
        Value::Double(number) => OptionValue::Text(number.to_string()),
        Value::List(list) => OptionValue::Text(list.values.join(", ")),
    })
}

fn option_error(error: &sql::Error) -> SetSessionOptionError {
    let name = [SqlState::UNDEFINED_OBJECT, SqlState::UNDEFINED_PARAMETER, SqlState::RESERVED_NAME];
    match error.kind() {
        _ if name.contains(&error.sqlstate()) => SetSessionOptionError::InvalidName,
        ErrorKind::InvalidInput | ErrorKind::NotFound => SetSessionOptionError::InvalidValue,
        _ => SetSessionOptionError::Error,
    }
}

fn get_options(call: &Call) -> Vec<Bytes> {
    let session_options = call
        .client
        .session
        .options()
        .into_iter()
        .map(|(name, value)| {
            let value = match value {
                OptionValue::Text(text) => Value::Text(text),
                OptionValue::Flag(flag) => Value::Flag(flag),
                OptionValue::Number(number) => Value::Number(number),
            };
            (name, SessionOptionValue { value: Some(value) })
        })
        .collect();
    bare(&GetSessionOptionsResult { session_options })
}

//! Who is calling: bearer tokens, cookies and connections, each leading to one engine session.
//!
//! A session is named by the bearer token that the handshake issued; by the `arrow_flight_session_id` cookie for clients that keep
//! cookies; or, for clients that send neither (anonymous, or `Basic` with every call), by the TCP connection. A session that belongs
//! to a connection ends with it; the others end when the client closes them or when they have been idle for long enough.
//!
//! Prepared statements, transactions and savepoints live in the session that made them. Their handles start with the session's
//! number, so that another connection *of the same principal* can use them (Spark tasks, reconnects); for everybody else they do not
//! exist.
//!
//! # Invariants
//! - SESS-1 one bearer token is one session. Test: `tests::a_token_is_a_session`.
//! - SESS-2 a token or cookie that is no longer known is refused, never silently replaced by a fresh session, so that nobody loses
//!   `BEGIN` or `SET` unnoticed. Test: `tests::idle_sessions_end_and_busy_ones_stay`, `tests::cookies_name_sessions`.
//! - SESS-3 handles of another principal do not exist. Test: `tests::handles_are_private_to_a_principal`.
//! - SESS-4 an idle session ends, a busy one does not. Test: `tests::idle_sessions_end_and_busy_ones_stay`.
//! - SESS-5 a statement prepared in a transaction that has ended runs in the session's one open transaction, because drivers keep
//!   prepared statements across commits; with none open it commits by itself. Test: `tests::statements_outlive_their_transaction`.
//! - SESS-6 sessions that clients left behind keep nobody out: at the limit, one that no open connection reaches makes room. Test:
//!   `tests::deserted_sessions_make_room`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use base::{Principal, SqlState};
use bytes::Bytes;
use parking_lot::Mutex;
use sql::{Params, SavepointHandle, SessionOptions, TransactionId};
use tokio::time::Instant;
use uuid::Uuid;

use crate::auth::{Authenticator, Credentials, Refusal};
use crate::error::{Error, Result};
use crate::metrics::Counters;
use crate::plan::Plan;
use crate::server::Peer;
use crate::throttle::Throttle;

/// The name of the session cookie, as the protocol suggests it.
pub(crate) const COOKIE: &str = "arrow_flight_session_id";
/// How much of a user name the audit log repeats.
const AUDITED_CHARS: usize = 64;
/// How many ended transactions a session remembers, so that a second ROLLBACK is not an error.
const ENDED_KEPT: usize = 64;

/// A handle that clients hold: the number of the session that owns the object, and 122 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Handle {
    pub(crate) client: u64,
    random: Uuid,
}

impl Handle {
    pub(crate) fn new(client: u64) -> Handle {
        Handle { client, random: Uuid::new_v4() }
    }

    pub(crate) fn to_bytes(self) -> Bytes {
        let mut bytes = Vec::with_capacity(24);
        bytes.extend_from_slice(&self.client.to_be_bytes());
        bytes.extend_from_slice(self.random.as_bytes());
        bytes.into()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Handle> {
        let (client, random) = bytes.split_first_chunk::<8>()?;
        let random = Uuid::from_slice(random).ok()?;
        Some(Handle { client: u64::from_be_bytes(*client), random })
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.client, self.random)
    }
}

/// A prepared statement.
pub(crate) struct Statement {
    pub(crate) handle: Handle,
    pub(crate) plan: Arc<Plan>,
    /// The transaction it was prepared in.
    pub(crate) transaction: Option<Handle>,
    /// The values of the last bind.
    pub(crate) bound: Mutex<Params>,
}

/// What a session holds for its client.
#[derive(Default)]
struct Held {
    statements: HashMap<Handle, Arc<Statement>>,
    transactions: HashMap<Handle, TransactionId>,
    ended: VecDeque<Handle>,
    savepoints: HashMap<Handle, (Handle, SavepointHandle)>,
}

/// One client: the engine's session and the wire's state of it.
pub(crate) struct Client {
    pub(crate) number: u64,
    pub(crate) principal: Principal,
    pub(crate) session: sql::Session,
    pub(crate) cookie: String,
    token: Option<String>,
    connection: Option<u64>,
    held: Mutex<Held>,
    active: AtomicUsize,
    last_used: Mutex<Instant>,
    /// Open connections that its requests came over.
    reached_over: Mutex<HashSet<u64>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("number", &self.number)
            .field("principal", &self.principal)
            .finish_non_exhaustive()
    }
}

/// Marks a client as busy while it lives.
#[derive(Debug)]
pub(crate) struct Active(Arc<Client>);

impl Active {
    pub(crate) fn new(client: &Arc<Client>) -> Active {
        client.active.fetch_add(1, Ordering::AcqRel);
        Active(Arc::clone(client))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        *self.0.last_used.lock() = Instant::now();
        self.0.active.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Client {
    /// Keeps a prepared statement, within the limit.
    pub(crate) fn keep_statement(
        &self,
        plan: Arc<Plan>,
        transaction: Option<Handle>,
        limit: usize,
    ) -> Result<Arc<Statement>> {
        let mut held = self.held.lock();
        if held.statements.len() >= limit {
            return Err(Error::TooLarge(format!("the session has {limit} prepared statements; close some of them")));
        }
        let handle = Handle::new(self.number);
        let statement = Arc::new(Statement { handle, plan, transaction, bound: Mutex::new(Params::None) });
        held.statements.insert(handle, Arc::clone(&statement));
        Ok(statement)
    }

    pub(crate) fn statement(&self, handle: Handle) -> Option<Arc<Statement>> {
        self.held.lock().statements.get(&handle).cloned()
    }

    pub(crate) fn forget_statement(&self, handle: Handle) {
        self.held.lock().statements.remove(&handle);
    }

    /// Begins a transaction.
    pub(crate) async fn begin(&self) -> Result<Handle> {
        let transaction = self.session.begin().await?;
        let handle = Handle::new(self.number);
        self.held.lock().transactions.insert(handle, transaction);
        Ok(handle)
    }

    /// Commits or rolls back. A rollback of a transaction that has ended already succeeds: drivers send one after a failed commit.
    pub(crate) async fn end(&self, handle: Handle, commit: bool) -> Result<()> {
        let transaction = {
            let mut held = self.held.lock();
            let Some(transaction) = held.transactions.remove(&handle) else {
                if !commit && held.ended.contains(&handle) {
                    return Ok(());
                }
                return Err(unknown_transaction());
            };
            held.ended.push_back(handle);
            if held.ended.len() > ENDED_KEPT {
                held.ended.pop_front();
            }
            held.savepoints.retain(|_, (owner, _)| *owner != handle);
            transaction
        };
        if commit {
            self.session.commit(transaction).await?
        } else {
            self.session.rollback(transaction).await?
        }
        Ok(())
    }

    pub(crate) fn open_transaction(&self, handle: Handle) -> Result<TransactionId> {
        self.held.lock().transactions.get(&handle).copied().ok_or_else(unknown_transaction)
    }

    /// The transaction that a statement prepared under `handle` runs in (SESS-5).
    pub(crate) fn transaction_of_statement(&self, handle: Option<Handle>) -> Result<Option<TransactionId>> {
        let Some(handle) = handle else { return Ok(None) };
        let held = self.held.lock();
        if let Some(transaction) = held.transactions.get(&handle) {
            return Ok(Some(*transaction));
        }
        drop(held);
        Ok(self.only_transaction())
    }

    /// The one open transaction, if there is exactly one.
    pub(crate) fn only_transaction(&self) -> Option<TransactionId> {
        let held = self.held.lock();
        match held.transactions.len() {
            1 => held.transactions.values().next().copied(),
            _ => None,
        }
    }

    pub(crate) async fn begin_savepoint(&self, owner: Handle, name: &str) -> Result<Handle> {
        let transaction = self.open_transaction(owner)?;
        let savepoint = self.session.savepoint(transaction, name).await?;
        let handle = Handle::new(self.number);
        self.held.lock().savepoints.insert(handle, (owner, savepoint));
        Ok(handle)
    }

    pub(crate) async fn end_savepoint(&self, handle: Handle, release: bool) -> Result<()> {
        let unknown = || Error::unknown("savepoint", SqlState::INVALID_SAVEPOINT);
        let (owner, savepoint) = self.held.lock().savepoints.get(&handle).copied().ok_or_else(unknown)?;
        let transaction = self.open_transaction(owner)?;
        if release {
            self.session.release_savepoint(transaction, savepoint).await?;
            self.held.lock().savepoints.remove(&handle);
        } else {
            // The savepoint itself survives a rollback to it, as in SQL.
            self.session.rollback_to_savepoint(transaction, savepoint).await?;
        }
        Ok(())
    }
}

/// One line of the audit log: who tried to come in, from where, and how it went.
fn audit(credentials: &Credentials, origin: &Origin<'_>, outcome: &'static str, failures: u32) {
    let peer = origin.peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
    let user: Option<String> = match credentials {
        // Quoted and cut, because a stranger chose it.
        Credentials::Basic { user, .. } => Some(user.chars().take(AUDITED_CHARS).collect()),
        Credentials::Bearer(_) | Credentials::Missing => None,
    };
    if outcome == "logged in" {
        tracing::info!(target: "audit", user = ?user, peer, outcome, "log-in");
    } else {
        tracing::warn!(target: "audit", user = ?user, peer, outcome, failures, "log-in");
    }
}

fn unknown_transaction() -> Error {
    Error::unknown("transaction", SqlState::NO_ACTIVE_TRANSACTION)
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Origin<'a> {
    /// The connection, if the listener counts them.
    pub(crate) connection: Option<u64>,
    /// The peer, for `lattice.queries` and for throttling log-ins.
    pub(crate) peer: Option<Peer>,
    /// The user agent, for `lattice.queries`.
    pub(crate) application: Option<&'a str>,
    /// The schema a new session starts in (`schema` header; the JDBC driver sends unknown URL properties as headers).
    pub(crate) schema: Option<&'a str>,
    /// The session cookie.
    pub(crate) cookie: Option<&'a str>,
}

/// What [`Registry::resolve`] found.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) client: Arc<Client>,
    pub(crate) active: Active,
    /// The session was made by this request, so the answer must carry its cookie.
    pub(crate) fresh: bool,
}

#[derive(Default)]
struct Index {
    clients: HashMap<u64, Arc<Client>>,
    by_token: HashMap<String, u64>,
    by_cookie: HashMap<String, u64>,
    by_connection: HashMap<(u64, Principal), u64>,
}

/// All clients.
pub(crate) struct Registry {
    engine: sql::Engine,
    auth: Arc<dyn Authenticator>,
    throttle: Throttle,
    counters: Arc<Counters>,
    sessions_max: usize,
    idle: Duration,
    next: AtomicU64,
    index: Mutex<Index>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("sessions", &self.len()).finish_non_exhaustive()
    }
}

impl Registry {
    pub(crate) fn new(
        engine: sql::Engine,
        auth: Arc<dyn Authenticator>,
        counters: Arc<Counters>,
        sessions_max: usize,
        idle: Duration,
    ) -> Registry {
        let (next, index) = (AtomicU64::new(1), Mutex::default());
        Registry { engine, auth, throttle: Throttle::default(), counters, sessions_max, idle, next, index }
    }

    /// Whether held row versions should be let go.
    pub(crate) fn is_pressed(&self) -> bool {
        self.engine.is_pressed()
    }

    pub(crate) fn len(&self) -> usize {
        self.index.lock().clients.len()
    }

    /// Logs in: always a fresh session, with a bearer token of its own.
    pub(crate) async fn login(&self, credentials: Credentials, origin: &Origin<'_>) -> Result<(Arc<Client>, String)> {
        if let Credentials::Bearer(token) = &credentials
            && let Some(client) = self.by_token(token)
        {
            // Token-only clients shake hands with the token they have.
            return Ok((client, token.clone()));
        }
        let principal = self.authenticate(&credentials, origin).await?;
        audit(&credentials, origin, "logged in", 0);
        let token = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        self.make_room().await;
        let (client, _) = self.open(principal, origin, Some(token.clone()), None)?;
        client.reached_over.lock().extend(origin.connection);
        Ok((client, token))
    }

    /// The session of a request, made if need be.
    pub(crate) async fn resolve(&self, credentials: Credentials, origin: &Origin<'_>) -> Result<Resolved> {
        self.find(credentials, origin, true).await
    }

    /// The session of a request, which must exist: probing must not make one.
    pub(crate) async fn existing(&self, credentials: Credentials, origin: &Origin<'_>) -> Result<Resolved> {
        self.find(credentials, origin, false).await
    }

    async fn find(&self, credentials: Credentials, origin: &Origin<'_>, create: bool) -> Result<Resolved> {
        let found = |client: Arc<Client>, fresh| {
            client.reached_over.lock().extend(origin.connection);
            Resolved { active: Active::new(&client), client, fresh }
        };
        if let Credentials::Bearer(token) = &credentials
            && let Some(client) = self.by_token(token)
        {
            return Ok(found(client, false));
        }
        let principal = self.authenticate(&credentials, origin).await?;
        if let Some(cookie) = origin.cookie {
            let client = self.by_cookie(cookie).filter(|client| client.principal == principal);
            // SESS-2
            let client =
                client.ok_or_else(|| Error::Unauthenticated("the session has expired; connect again".to_owned()))?;
            return Ok(found(client, false));
        }
        let token = match credentials {
            // A token of another issuer names a session just like one of ours.
            Credentials::Bearer(token) => Some(token),
            _ => None,
        };
        if token.is_none()
            && let Some(connection) = origin.connection
            && let Some(client) = self.by_connection(connection, &principal)
        {
            return Ok(found(client, false));
        }
        if !create {
            return Err(Error::Unauthenticated("there is no session yet".to_owned()));
        }
        let connection = if token.is_none() { origin.connection } else { None };
        self.make_room().await;
        let (client, fresh) = self.open(principal, origin, token, connection)?;
        Ok(found(client, fresh))
    }

    /// At the limit, ends a session that no open connection reaches (SESS-6).
    async fn make_room(&self) {
        if self.index.lock().clients.len() < self.sessions_max {
            return;
        }
        if let Some(deserted) = self.deserted() {
            tracing::info!(session = deserted.number, "ended a session that no connection reaches, to make room");
            self.close(&deserted).await;
        }
    }

    /// Of the sessions that no open connection has used, the one to miss least: without a transaction, and unused for longest.
    /// A client that ends without closing its session leaves one behind.
    fn deserted(&self) -> Option<Arc<Client>> {
        let index = self.index.lock();
        let deserted = index
            .clients
            .values()
            .filter(|client| client.active.load(Ordering::Acquire) == 0 && client.reached_over.lock().is_empty());
        deserted.min_by_key(|client| (!client.held.lock().transactions.is_empty(), *client.last_used.lock())).cloned()
    }

    async fn authenticate(&self, credentials: &Credentials, origin: &Origin<'_>) -> Result<Principal> {
        match credentials {
            Credentials::Basic { user, password } => {
                let peer = origin.peer.and_then(Peer::ip);
                match self.throttle.admit(user, peer).await {
                    Ok(waited) => {
                        self.counters.logins_throttled.fetch_add(u64::from(waited), Ordering::Relaxed);
                    }
                    Err(error) => {
                        self.counters.logins_throttled.fetch_add(1, Ordering::Relaxed);
                        audit(credentials, origin, "refused unchecked, after too many failures", 0);
                        return Err(error);
                    }
                }
                match self.auth.password(user, password).await {
                    Ok(principal) => {
                        self.throttle.succeeded(user, peer);
                        Ok(principal)
                    }
                    Err(refusal) => {
                        if refusal == Refusal::WrongPassword {
                            self.counters.logins_failed.fetch_add(1, Ordering::Relaxed);
                            let failures = self.throttle.failed(user, peer);
                            audit(credentials, origin, "wrong user name or password", failures);
                        }
                        Err(refusal.into())
                    }
                }
            }
            Credentials::Bearer(token) => match self.auth.bearer(token).await {
                Ok(principal) => Ok(principal),
                Err(refusal) => {
                    if refusal == Refusal::UnknownToken {
                        // No delay: a token has too many bits to be guessed.
                        self.counters.logins_failed.fetch_add(1, Ordering::Relaxed);
                        audit(credentials, origin, "unknown bearer token", 0);
                    }
                    Err(refusal.into())
                }
            },
            Credentials::Missing => self.auth.anonymous().ok_or_else(|| {
                Error::Unauthenticated("a user name and a password, or a bearer token, are required".to_owned())
            }),
        }
    }

    fn open(
        &self,
        principal: Principal,
        origin: &Origin<'_>,
        token: Option<String>,
        connection: Option<u64>,
    ) -> Result<(Arc<Client>, bool)> {
        let mut index = self.index.lock();
        // Two first requests at once: the slower one finds the session that the faster one has made.
        let there = match (&token, connection) {
            (Some(token), _) => index.by_token.get(token),
            (None, Some(connection)) => index.by_connection.get(&(connection, principal.clone())),
            (None, None) => None,
        };
        if let Some(client) = there.and_then(|number| index.clients.get(number)) {
            if client.principal == principal {
                return Ok((Arc::clone(client), false));
            }
            return Err(Error::Unauthenticated("the token belongs to another session".to_owned()));
        }
        if index.clients.len() >= self.sessions_max {
            return Err(Error::TooManySessions(self.sessions_max));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let session = self.engine.session(
            principal.clone(),
            SessionOptions {
                schema: origin.schema.map(str::to_owned),
                application: origin.application.map(str::to_owned),
                client_address: origin.peer.map(|peer| peer.to_string()),
                settings: Vec::new(),
            },
        );
        let client = Arc::new(Client {
            number,
            principal: principal.clone(),
            session,
            cookie: Uuid::new_v4().simple().to_string(),
            token: token.clone(),
            connection,
            held: Mutex::default(),
            active: AtomicUsize::new(0),
            last_used: Mutex::new(Instant::now()),
            reached_over: Mutex::default(),
        });
        if let Some(token) = token {
            index.by_token.insert(token, number);
        }
        if let Some(connection) = connection {
            index.by_connection.insert((connection, principal), number);
        }
        index.by_cookie.insert(client.cookie.clone(), number);
        index.clients.insert(number, Arc::clone(&client));
        tracing::debug!(session = number, principal = client.principal.name(), "session opened");
        Ok((client, true))
    }

    fn by_token(&self, token: &str) -> Option<Arc<Client>> {
        let index = self.index.lock();
        index.by_token.get(token).and_then(|number| index.clients.get(number)).cloned()
    }

    fn by_cookie(&self, cookie: &str) -> Option<Arc<Client>> {
        let index = self.index.lock();
        index.by_cookie.get(cookie).and_then(|number| index.clients.get(number)).cloned()
    }

    fn by_connection(&self, connection: u64, principal: &Principal) -> Option<Arc<Client>> {
        let index = self.index.lock();
        index.by_connection.get(&(connection, principal.clone())).and_then(|number| index.clients.get(number)).cloned()
    }

    /// The owner of a handle, if `caller` may see it (SESS-3).
    pub(crate) fn owner(&self, number: u64, caller: &Arc<Client>) -> Option<Arc<Client>> {
        if number == caller.number {
            return Some(Arc::clone(caller));
        }
        let owner = self.index.lock().clients.get(&number).cloned()?;
        (owner.principal == caller.principal).then_some(owner)
    }

    /// Forgets a client and ends its engine session, which rolls back what is open.
    pub(crate) async fn close(&self, client: &Client) {
        self.forget(client);
        client.session.close().await;
        tracing::debug!(session = client.number, "session closed");
    }

    fn forget(&self, client: &Client) {
        let mut index = self.index.lock();
        index.clients.remove(&client.number);
        index.by_cookie.remove(&client.cookie);
        if let Some(token) = &client.token {
            index.by_token.remove(token);
        }
        if let Some(connection) = client.connection {
            index.by_connection.remove(&(connection, client.principal.clone()));
        }
    }

    /// Ends the sessions that belong to a connection; returns their numbers.
    pub(crate) async fn disconnected(&self, connection: u64) -> Vec<u64> {
        let gone: Vec<Arc<Client>> = {
            let index = self.index.lock();
            for client in index.clients.values() {
                client.reached_over.lock().remove(&connection);
            }
            index.clients.values().filter(|client| client.connection == Some(connection)).cloned().collect()
        };
        for client in &gone {
            self.close(client).await;
        }
        gone.iter().map(|client| client.number).collect()
    }

    /// Rolls back transactions and ends sessions that have been idle for too long; returns the sessions their numbers.
    pub(crate) async fn expire(&self) -> Vec<u64> {
        self.throttle.expire();
        let all: Vec<Arc<Client>> = self.index.lock().clients.values().cloned().collect();
        all.iter().for_each(|client| client.session.expire_idle_transactions());
        let now = Instant::now();
        let stale: Vec<Arc<Client>> = {
            let index = self.index.lock();
            let idle = |client: &&Arc<Client>| {
                client.active.load(Ordering::Acquire) == 0
                    && client.connection.is_none()
                    && now.duration_since(*client.last_used.lock()) > self.idle
            };
            index.clients.values().filter(idle).cloned().collect()
        };
        for client in &stale {
            tracing::info!(session = client.number, principal = client.principal.name(), "session expired");
            self.close(client).await;
        }
        stale.iter().map(|client| client.number).collect()
    }

    /// Ends every session.
    pub(crate) async fn close_all(&self) {
        let all: Vec<Arc<Client>> = self.index.lock().clients.values().cloned().collect();
        for client in all {
            self.close(&client).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_travel() {
        let handle = Handle::new(7);
        assert_eq!(Handle::from_bytes(&handle.to_bytes()), Some(handle));
        assert_eq!(handle.to_bytes().len(), 24);
        assert_eq!(Handle::from_bytes(b"short"), None);
        assert_eq!(Handle::from_bytes(&[0; 25]), None);
        assert_ne!(Handle::new(7), Handle::new(7));
    }
}

//! A Flight SQL connection for the client commands: `lattice sql`, `lattice load` and the online part of the others.
//!
//! Everything goes through the wire, as any other client's requests do; there is no private way in.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::{FlightSqlServiceClient, PreparedStatement};
use arrow_flight::sql::{CommandStatementIngest, TableDefinitionOptions, TableExistsOption, TableNotExistOption};
use arrow_flight::{FlightInfo, HandshakeRequest};
use futures::stream::{self, BoxStream, Stream};
use futures::{StreamExt, TryStreamExt};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::password;

/// How to reach a server; shared by all client commands.
#[derive(Clone, Debug, clap::Args)]
pub struct ConnectArgs {
    /// Server address: host:port, or grpc://host:port, or grpc+tls://host:port
    #[arg(long, short = 'H', env = "LATTICE_HOST", default_value = "127.0.0.1:50051")]
    pub host: String,
    /// User name
    #[arg(long, short = 'U', env = "LATTICE_USER", default_value = "admin")]
    pub user: String,
    /// Password; LATTICE_PASSWORD keeps it out of the list of processes, and a terminal is asked when it is missing
    #[arg(long, value_name = "TEXT")]
    pub password: Option<String>,
    /// PEM file with the certificate authority to trust; switches TLS on
    #[arg(long)]
    pub tls_ca: Option<std::path::PathBuf>,
    /// PEM file with a certificate to show to the server, for servers that ask for one
    #[arg(long, requires = "tls_key")]
    pub tls_cert: Option<std::path::PathBuf>,
    /// PEM file with the private key of --tls-cert
    #[arg(long, requires = "tls_cert")]
    pub tls_key: Option<std::path::PathBuf>,
}

impl ConnectArgs {
    fn given_password(&self) -> Option<String> {
        let variables = ["LATTICE_PASSWORD", "LATTICE_ADMIN_PASSWORD"];
        self.password.clone().or_else(|| variables.iter().find_map(|name| std::env::var(name).ok()))
    }

    fn address(&self) -> (String, bool) {
        let text = self.host.trim();
        for (prefix, tls) in [
            ("grpc+tls://", true),
            ("grpc+tcp://", false),
            ("grpc://", false),
            ("flightsql+tls://", true),
            ("flightsql://", self.tls_ca.is_some()),
            ("https://", true),
            ("http://", false),
        ] {
            if let Some(rest) = text.strip_prefix(prefix) {
                return (rest.to_owned(), tls);
            }
        }
        (text.to_owned(), self.tls_ca.is_some())
    }
}

/// An error as the server told it, or a failure on the way.
#[derive(Clone, Debug)]
pub struct ClientError {
    /// What happened: from a server it starts with the code and holds the place in the statement, detail and hint.
    pub message: String,
    /// The five-character code, when there is one.
    pub sqlstate: Option<String>,
}

/// SQLSTATE of a broken connection, as PostgreSQL names it.
const CONNECTION_FAILURE: &str = "08006";

impl ClientError {
    fn plain(message: impl Into<String>) -> Self {
        Self { message: message.into(), sqlstate: None }
    }

    /// Whether the server did not accept user name and password.
    fn is_refused_login(&self) -> bool {
        matches!(self.sqlstate.as_deref(), Some("28P01" | "28000"))
    }

    /// Whether the connection itself is gone.
    pub fn is_disconnect(&self) -> bool {
        self.sqlstate.as_deref() == Some(CONNECTION_FAILURE)
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ClientError {}

impl From<FlightError> for ClientError {
    fn from(error: FlightError) -> Self {
        match &error {
            FlightError::Tonic(status) => Self::from(status.as_ref().clone()),
            FlightError::ExternalError(inner) => match inner.downcast_ref::<FlightError>() {
                Some(FlightError::Tonic(status)) => Self::from(status.as_ref().clone()),
                _ => Self::plain(inner.to_string()),
            },
            _ => Self::plain(error.to_string()),
        }
    }
}

impl From<tonic::Status> for ClientError {
    fn from(status: tonic::Status) -> Self {
        match status.metadata().get("lattice-sqlstate").and_then(|code| code.to_str().ok()) {
            Some(code) => Self { message: status.message().to_owned(), sqlstate: Some(code.to_owned()) },
            None if status.code() == tonic::Code::Unavailable || status.code() == tonic::Code::Unknown => Self {
                message: format!("the connection to the server is lost: {}", status.message()),
                sqlstate: Some(CONNECTION_FAILURE.to_owned()),
            },
            None => Self::plain(status.message()),
        }
    }
}

/// What a statement gave back.
pub enum Reply {
    /// Rows, arriving.
    Rows {
        /// Their schema.
        schema: SchemaRef,
        /// Batches as the server sends them.
        batches: BoxStream<'static, Result<RecordBatch, ClientError>>,
    },
    /// A statement without rows; the count of changed rows where there is one.
    Done {
        /// Changed rows.
        affected: Option<u64>,
    },
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Rows { schema, .. } => f.debug_struct("Rows").field("schema", schema).finish_non_exhaustive(),
            Reply::Done { affected } => f.debug_struct("Done").field("affected", affected).finish(),
        }
    }
}

/// A prepared statement of a session.
#[derive(Debug)]
pub struct Prepared {
    statement: PreparedStatement<Channel>,
}

/// An open session.
#[derive(Debug)]
pub struct Client {
    inner: FlightSqlServiceClient<Channel>,
    address: String,
    tls: bool,
}

impl Client {
    /// Connects and opens a session.
    pub async fn connect(args: &ConnectArgs) -> Result<Client, ClientError> {
        let (address, tls) = args.address();
        let scheme = if tls { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(|_| ClientError::plain(format!("`{}` is not a server address; write host:port", args.host)))?
            .connect_timeout(Duration::from_secs(10))
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_while_idle(true)
            .initial_stream_window_size(16 << 20)
            .initial_connection_window_size(64 << 20);
        if tls {
            let mut config = ClientTlsConfig::new();
            let read = |path: &std::path::Path| {
                std::fs::read(path)
                    .map_err(|error| ClientError::plain(format!("cannot read {}: {error}", path.display())))
            };
            if let Some(path) = &args.tls_ca {
                config = config.ca_certificate(Certificate::from_pem(read(path)?));
            }
            if let (Some(cert), Some(key)) = (&args.tls_cert, &args.tls_key) {
                config = config.identity(Identity::from_pem(read(cert)?, read(key)?));
            }
            endpoint = endpoint
                .tls_config(config)
                .map_err(|error| ClientError::plain(format!("TLS cannot be set up: {error}")))?;
        }
        let channel = endpoint.connect().await.map_err(|error| unconnected(&address, tls, &root_cause(&error)))?;
        let service = FlightServiceClient::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        let mut inner = FlightSqlServiceClient::new_from_inner(service);
        let given = args.given_password();
        let mut opened = handshake(&mut inner, &args.user, given.as_deref().unwrap_or_default()).await;
        if given.is_none() && opened.as_ref().is_err_and(ClientError::is_refused_login) {
            opened = match password::ask(&args.user, &address) {
                Some(password) => handshake(&mut inner, &args.user, &password).await,
                None => opened.map_err(|refused| ClientError {
                    message: format!(
                        "the server at {address} wants a password, and none was given\n\
                         HINT: set LATTICE_PASSWORD, or say --password"
                    ),
                    ..refused
                }),
            };
        }
        let token = match opened {
            Ok(token) => token,
            Err(error) => return Err(explained(error, &address, tls).await),
        };
        if let Some(token) = token {
            inner.set_token(token);
        }
        Ok(Client { inner, address, tls })
    }

    /// Where this client is connected, as a URI.
    pub fn uri(&self) -> String {
        format!("{}://{}", if self.tls { "grpc+tls" } else { "grpc" }, self.address)
    }

    /// Ends the session, which counts against the server's limit as long as it is open.
    pub async fn close(mut self) {
        let request = arrow_flight::Action { r#type: "CloseSession".to_owned(), body: Default::default() };
        // A server that is gone has ended it.
        if let Ok(mut answers) = self.inner.do_action(request).await {
            while let Ok(Some(_)) = answers.try_next().await {}
        }
    }

    /// Runs one statement.
    pub async fn run(&mut self, sql: &str) -> Result<Reply, ClientError> {
        let info = self.inner.execute(sql.to_owned(), None).await?;
        self.reply(info).await
    }

    async fn reply(&mut self, info: FlightInfo) -> Result<Reply, ClientError> {
        let schema = if info.schema.is_empty() {
            Schema::empty()
        } else {
            info.clone()
                .try_decode_schema()
                .map_err(|error| ClientError::plain(format!("the server's schema cannot be read: {error}")))?
        };
        if schema.fields().is_empty() {
            // A statement without rows has run already; its (empty) stream is read so that the ticket is spent.
            for endpoint in &info.endpoint {
                if let Some(ticket) = endpoint.ticket.clone() {
                    let mut stream = self.inner.do_get(ticket).await?;
                    while stream.try_next().await?.is_some() {}
                }
            }
            return Ok(Reply::Done { affected: u64::try_from(info.total_records).ok() });
        }
        let mut streams: Vec<FlightRecordBatchStream> = Vec::new();
        for endpoint in &info.endpoint {
            if let Some(ticket) = endpoint.ticket.clone() {
                streams.push(self.inner.do_get(ticket).await?);
            }
        }
        let batches = stream::iter(streams).flatten().map_err(ClientError::from).boxed();
        Ok(Reply::Rows { schema: Arc::new(schema), batches })
    }

    /// Runs a statement and collects its rows.
    pub async fn rows(&mut self, sql: &str) -> Result<(SchemaRef, Vec<RecordBatch>), ClientError> {
        match self.run(sql).await? {
            Reply::Rows { schema, batches } => Ok((schema, batches.try_collect().await?)),
            Reply::Done { .. } => Ok((Arc::new(Schema::empty()), Vec::new())),
        }
    }

    /// Prepares a statement, to run it many times with values.
    pub async fn prepare(&mut self, sql: &str) -> Result<Prepared, ClientError> {
        let statement = self.inner.prepare(sql.to_owned(), None).await?;
        Ok(Prepared { statement })
    }

    /// Runs a prepared query with one row of values.
    pub async fn query(&mut self, prepared: &mut Prepared, values: RecordBatch) -> Result<Reply, ClientError> {
        prepared.statement.set_parameters(values)?;
        let info = prepared.statement.execute().await?;
        self.reply(info).await
    }

    /// Runs a prepared statement that writes with one row of values; the number of rows it changed.
    pub async fn update(&mut self, prepared: &mut Prepared, values: RecordBatch) -> Result<u64, ClientError> {
        prepared.statement.set_parameters(values)?;
        let count = prepared.statement.execute_update().await?;
        Ok(u64::try_from(count).unwrap_or_default())
    }

    /// Appends a stream of batches to a table; `create` makes the table from the batches' schema when it is missing.
    pub async fn ingest<S>(
        &mut self,
        schema: Option<String>,
        table: String,
        create: bool,
        batches: S,
    ) -> Result<u64, ClientError>
    where
        S: Stream<Item = Result<RecordBatch, FlightError>> + Send + 'static,
    {
        let missing = if create { TableNotExistOption::Create } else { TableNotExistOption::Fail };
        let command = CommandStatementIngest {
            table_definition_options: Some(TableDefinitionOptions {
                if_not_exist: missing.into(),
                if_exists: TableExistsOption::Append.into(),
            }),
            table,
            schema,
            catalog: None,
            temporary: false,
            transaction_id: None,
            options: Default::default(),
        };
        let count = self.inner.execute_ingest(command, batches).await?;
        Ok(u64::try_from(count).unwrap_or_default())
    }
}

/// The innermost reason of an error.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// How the TLS library calls bytes that are no TLS.
const NO_TLS: &str = "InvalidContentType";

/// Why there is no connection: nobody there, no TLS where it was asked for, or a certificate that is not trusted.
fn unconnected(address: &str, tls: bool, cause: &str) -> ClientError {
    let message = if tls && cause.contains(NO_TLS) {
        format!(
            "the server at {address} answers, but not with TLS\n\
             HINT: leave --tls-ca out and write grpc://{address}, or name the port that has TLS"
        )
    } else if tls && cause.contains("HTTP/2 was not negotiated") {
        not_flight(address)
    } else if tls && cause.contains("certificate") {
        format!(
            "the certificate of the server at {address} is not accepted: {cause}\n\
             HINT: name the certificate authority that signed it with --tls-ca FILE"
        )
    } else {
        format!(
            "no server answers at {address}: {cause}\n\
             HINT: start one with `lattice serve`, or name another address with --host"
        )
    };
    ClientError { message, sqlstate: Some(CONNECTION_FAILURE.to_owned()) }
}

/// Says of a handshake that failed before the server could say why, what the port is instead.
async fn explained(error: ClientError, address: &str, tls: bool) -> ClientError {
    if error.message.contains("mapped from HTTP status code") {
        return ClientError::plain(not_flight(address));
    }
    if error.sqlstate.as_deref().is_some_and(|state| state != CONNECTION_FAILURE) {
        return error;
    }
    let message = if tls {
        format!(
            "{error}\nHINT: a server with `client_ca` closes connections that show no certificate it trusts: \
             name yours with --tls-cert and --tls-key"
        )
    } else if speaks_tls(address).await {
        format!(
            "the server at {address} wants TLS\n\
             HINT: write grpc+tls://{address}, and name the authority of its certificate with --tls-ca FILE \
             unless the system trusts it"
        )
    } else {
        return error;
    };
    ClientError { message, sqlstate: Some(CONNECTION_FAILURE.to_owned()) }
}

fn not_flight(address: &str) -> String {
    format!(
        "{address} is not a Flight SQL port: it answers HTTP requests, as the port of the status page does\n\
         HINT: name the Flight SQL port, 50051 unless `flight` says otherwise, with --host"
    )
}

/// Whether a port that does not understand us understands TLS, whatever certificate it shows.
async fn speaks_tls(address: &str) -> bool {
    let endpoint = Endpoint::from_shared(format!("https://{address}"))
        .map(|endpoint| endpoint.connect_timeout(Duration::from_secs(5)))
        .and_then(|endpoint| endpoint.tls_config(ClientTlsConfig::new()));
    let Ok(endpoint) = endpoint else { return false };
    match endpoint.connect().await {
        Ok(_) => true,
        Err(error) => root_cause(&error).contains("certificate"),
    }
}

/// Basic credentials in, bearer token out.
async fn handshake(
    client: &mut FlightSqlServiceClient<Channel>,
    user: &str,
    password: &str,
) -> Result<Option<String>, ClientError> {
    use base64::Engine as _;
    let credentials = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    let message = HandshakeRequest { protocol_version: 0, payload: Default::default() };
    let mut request = tonic::Request::new(stream::iter(vec![message]));
    let value = format!("Basic {credentials}")
        .parse()
        .map_err(|_| ClientError::plain("the user name or password cannot be sent"))?;
    request.metadata_mut().insert("authorization", value);
    let response = client.inner_mut().handshake(request).await?;
    let token = response
        .metadata()
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "))
        .map(str::to_owned);
    let mut replies = response.into_inner();
    while replies.try_next().await?.is_some() {}
    Ok(token)
}

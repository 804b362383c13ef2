//! The server's settings: defaults, then a TOML file, then `LATTICE_*` variables, then flags; the last word wins.
//!
//! Each section is one struct, written once with its documentation and defaults; the key list, the names of the
//! environment variables and `docs/config.md` are made from the same text.
//!
//! # Invariants
//! - CONFIG-1 an unknown key, in the file or in the environment, is refused with the nearest known one
//!   (`unknown_keys_are_refused`).
//! - CONFIG-2 `docs/config.md` says what the structs say (`the_reference_is_current`).
//! - CONFIG-3 nothing listens beyond loopback without credentials and TLS, unless `insecure` says so
//!   (`listening_beyond_loopback_needs_password_and_tls`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::{Table, Value};

/// Environment variables that are not keys of the configuration.
pub const OTHER_VARIABLES: &[(&str, &str)] = &[
    ("LATTICE_CONFIG", "Path of the configuration file, like `--config`."),
    (
        "LATTICE_ADMIN_PASSWORD",
        "Password of the user `admin`. Required to listen beyond loopback. The client commands (`lattice sql`, `lattice \
         load`, …) send it too, unless `LATTICE_PASSWORD` is set.",
    ),
    ("LATTICE_HOST", "Server address that the client commands connect to, like `--host`."),
    ("LATTICE_USER", "User name that the client commands send, like `--user`."),
    ("LATTICE_PASSWORD", "Password that the client commands send."),
    ("LATTICE_HISTORY", "File in which `lattice sql` keeps its history; empty keeps none."),
    ("LATTICE_FAILPOINT", "For tests: `name[:count]` stops the process at the count-th passage of a named point."),
];

/// One documented key.
#[derive(Clone, Debug)]
pub struct Field {
    /// Name of the section, empty at the top level.
    pub section: &'static str,
    /// Name of the key.
    pub name: &'static str,
    /// What it means.
    pub doc: String,
    /// The kind of value, in words.
    pub kind: &'static str,
    /// The default, as TOML.
    pub default: String,
    check: fn(&Value) -> Result<(), String>,
}

impl Field {
    /// The dotted name, as messages show it.
    pub fn path(&self) -> String {
        if self.section.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.section, self.name) }
    }

    /// The environment variable of this key.
    pub fn variable(&self) -> String {
        format!("LATTICE_{}", self.path().replace('.', "_").to_uppercase())
    }
}

/// What kind of value a type holds, in words for the reference.
trait Kind {
    const KIND: &'static str;
}
impl Kind for bool {
    const KIND: &'static str = "true or false";
}
impl Kind for u64 {
    const KIND: &'static str = "number";
}
impl Kind for String {
    const KIND: &'static str = "text";
}
impl Kind for Vec<String> {
    const KIND: &'static str = "list of texts";
}

/// A number of bytes: `268435456`, `"256MiB"`, `"4 GB"`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Kind for Bytes {
    const KIND: &'static str = "size";
}

const UNITS: &[(&str, u64)] = &[
    ("tib", 1 << 40),
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("tb", 1_000_000_000_000),
    ("gb", 1_000_000_000),
    ("mb", 1_000_000),
    ("kb", 1_000),
    ("b", 1),
];

impl Bytes {
    fn parse(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let (number, unit) =
            UNITS.iter().find_map(|(name, size)| Some((lower.strip_suffix(name)?, *size))).unwrap_or((&lower, 1));
        let number = number.trim();
        number
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(unit))
            .map(Bytes)
            .ok_or_else(|| format!("`{text}` is not a size; write for example \"256MiB\""))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, size) in [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 >= size && self.0.is_multiple_of(size) {
                return write!(f, "{}{name}", self.0 / size);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A number or a text, so that units are optional in the file.
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match NumberOrText::deserialize(deserializer)
            .map_err(|_| serde::de::Error::custom("not a size; write for example \"256MiB\""))?
        {
            NumberOrText::Number(count) => Ok(Bytes(count)),
            NumberOrText::Text(text) => Bytes::parse(&text).map_err(serde::de::Error::custom),
        }
    }
}

/// A length of time: `"250ms"`, `"30s"`, `"5min"`, `"2h"`; a bare number counts seconds; 0 switches off.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Kind for Span {
    const KIND: &'static str = "duration";
}

impl Span {
    fn parse(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let units: &[(&str, u64)] = &[("ms", 1), ("min", 60_000), ("h", 3_600_000), ("s", 1_000)];
        let (number, unit) =
            units.iter().find_map(|(name, size)| Some((lower.strip_suffix(name)?, *size))).unwrap_or((&lower, 1_000));
        number
            .trim()
            .parse::<u64>()
            .ok()
            .and_then(|count| count.checked_mul(unit))
            .map(|millis| Span(Duration::from_millis(millis)))
            .ok_or_else(|| format!("`{text}` is not a duration; write for example \"30s\" or \"250ms\""))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match millis {
            0 => f.write_str("0s"),
            _ if millis.is_multiple_of(3_600_000) => write!(f, "{}h", millis / 3_600_000),
            _ if millis.is_multiple_of(60_000) => write!(f, "{}min", millis / 60_000),
            _ if millis.is_multiple_of(1_000) => write!(f, "{}s", millis / 1_000),
            _ => write!(f, "{millis}ms"),
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match NumberOrText::deserialize(deserializer)
            .map_err(|_| serde::de::Error::custom("not a duration; write for example \"30s\""))?
        {
            NumberOrText::Number(seconds) => Ok(Span(Duration::from_secs(seconds))),
            NumberOrText::Text(text) => Span::parse(&text).map_err(serde::de::Error::custom),
        }
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One readable line each.
    Text,
    /// One JSON object each.
    Json,
}

impl Kind for LogFormat {
    const KIND: &'static str = "\"text\" or \"json\"";
}

fn check<T: for<'de> Deserialize<'de>>(value: &Value) -> Result<(), String> {
    T::deserialize(value.clone()).map(|_| ()).map_err(|error| error.message().trim().to_owned())
}

fn as_toml<T: Serialize>(value: &T) -> String {
    Value::try_from(value).map(|value| value.to_string()).unwrap_or_default()
}

macro_rules! section {
    ($section:literal, $(#[doc = $about:literal])+ $name:ident {
        $( $(#[doc = $doc:literal])+ $field:ident: $type:ty = $default:expr; )*
    }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $( $(#[doc = $doc])+ pub $field: $type, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $name {
            fn about() -> String {
                [$($about),+].map(str::trim).join(" ")
            }

            fn fields() -> Vec<Field> {
                let defaults = Self::default();
                vec![$( Field {
                    section: $section,
                    name: stringify!($field),
                    doc: [$($doc),+].map(str::trim).join(" "),
                    kind: <$type as Kind>::KIND,
                    default: as_toml(&defaults.$field),
                    check: check::<$type>,
                } ),*]
            }
        }
    };
}

section! { "",
    /// Where the server keeps its data and where it listens. These keys stand at the top of the file, before any section.
    Listen {
        /// Folder of the database: journal, checkpoint and, unless `storage.columns` says otherwise, the column tier.
        /// Created when missing; a folder that holds something else is refused.
        data: String = "lattice-data".to_owned();
        /// Address for Flight SQL. Port 0 takes a free one, shown at start.
        flight: String = "127.0.0.1:50051".to_owned();
        /// Path of a local (Unix) socket on which Flight SQL listens too; whoever may open the file may connect. Empty for none.
        socket: String = String::new();
        /// Address for the status page, `/health`, `/ready` and `/metrics`. Empty switches HTTP off.
        http: String = "127.0.0.1:8080".to_owned();
        /// PEM file with the server's certificate chain. With it and `tls_key`, both ports speak TLS only.
        tls_cert: String = String::new();
        /// PEM file with the private key of `tls_cert`.
        tls_key: String = String::new();
        /// PEM file with the certificates that sign those of clients. With it, Flight SQL lets only clients in that show such a
        /// certificate (mutual TLS); a password is asked for all the same.
        client_ca: String = String::new();
        /// How often a quiet connection is probed, so that load balancers keep it and dead peers are noticed.
        keepalive: Span = Span(Duration::from_secs(20));
        /// Listen beyond loopback without a password or without TLS. Everything, passwords included, then travels in clear.
        insecure: bool = false;
        /// After SIGTERM or SIGINT: how long running statements may take to finish before they are cancelled.
        drain_timeout: Span = Span(Duration::from_secs(30));
    }
}

section! { "storage",
    /// How much memory the tiers use and when rows move from the row tier to the column tier.
    Storage {
        /// URL of the column tier: a folder, `file:///path` or `s3://bucket/prefix`. Empty means a folder inside `data`.
        /// S3 reads its credentials from the usual `AWS_*` variables.
        columns: String = String::new();
        /// Memory for rows that are not yet in the column tier. Writers wait when it is full.
        row_tier: Bytes = Bytes(256 << 20);
        /// Memory for cached parts of columnar files.
        cache: Bytes = Bytes(1 << 30);
        /// A table is flushed when its rows in the row tier reach this size …
        flush_bytes: Bytes = Bytes(32 << 20);
        /// … and otherwise this often, while there are any; 0 leaves only the size.
        flush_interval: Span = Span(Duration::from_secs(5));
        /// Small files of one table that cause a merge.
        merge_files: u64 = 8;
        /// How long the history of a dropped table can still be read `AS OF` an earlier moment. Its files are removed
        /// afterwards.
        dropped_retention: Span = Span(Duration::from_secs(7 * 24 * 3600));
        /// Length of log after which tables that lag are flushed and a checkpoint is written, so that restarts stay short.
        log_max: Bytes = Bytes(256 << 20);
        /// With less free space than this on the disk of `data`, writes are refused (53100) and reads go on; what is left is for
        /// moving rows to the column tier.
        low_water: Bytes = Bytes(256 << 20);
        /// Memory for what transactions that run must know of recent commits and moves. Beyond it, those that began before fail with
        /// 40001 when they write.
        recent: Bytes = Bytes(512 << 20);
        /// When the system clock jumps further ahead than this, commits are refused until it is right again or the server is
        /// restarted: timestamps of commits are not taken back. 0 believes every time.
        clock_jump: Span = Span(Duration::from_secs(3600));
        /// Size of one journal segment.
        journal_segment: Bytes = Bytes(64 << 20);
        /// How long a statement waits for a row that another transaction has locked.
        lock_timeout: Span = Span(Duration::from_secs(10));
        /// A transaction that writes more than this moves its changes to files and commits them by reference.
        spill_bytes: Bytes = Bytes(64 << 20);
        /// How long a writer waits for room in the row tier, for example while the object store cannot be reached, before
        /// it is refused.
        write_stall_timeout: Span = Span(Duration::from_secs(30));
    }
}

section! { "sql",
    /// Limits of statements.
    Sql {
        /// Memory that all running queries may use together; beyond it they spill to temporary files.
        memory: Bytes = Bytes(4 << 30);
        /// Parallel parts of one query; 0 takes the number of processor cores.
        parallelism: u64 = 0;
        /// A statement that runs longer is cancelled. `SET statement_timeout` changes it for a session; 0 means no limit.
        statement_timeout: Span = Span(Duration::ZERO);
        /// Statements that run longer are logged; 0 logs none.
        slow_statement: Span = Span(Duration::from_secs(10));
        /// `INSERT … SELECT` and bulk ingest of more rows than this write columnar files at once, and commit them by
        /// reference.
        bulk_rows: u64 = 20_000;
        /// A transaction that has done something and then nothing for so long is rolled back; 0 means never.
        idle_transaction_timeout: Span = Span(Duration::from_secs(300));
        /// Folders in which `COPY` may read and write files. Empty forbids `COPY` with files.
        copy_folders: Vec<String> = Vec::new();
    }
}

section! { "limits",
    /// What one client may ask for.
    Limits {
        /// Largest message accepted from a client.
        message: Bytes = Bytes(256 << 20);
        /// Largest row: the bytes of all its values.
        row: Bytes = Bytes(64 << 20);
        /// Open sessions.
        sessions: u64 = 1024;
        /// A session without requests for so long is closed.
        session_idle: Span = Span(Duration::from_secs(3600));
    }
}

section! { "log",
    /// What the server writes to standard error.
    Log {
        /// `error`, `warn`, `info`, `debug` or `trace`, or a filter such as `info,storage=debug`.
        level: String = "info".to_owned();
        /// One readable line, or one JSON object, per event.
        format: LogFormat = LogFormat::Text;
    }
}

/// All settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// Keys at the top of the file.
    pub listen: Listen,
    /// Section `storage`.
    pub storage: Storage,
    /// Section `sql`.
    pub sql: Sql,
    /// Section `limits`.
    pub limits: Limits,
    /// Section `log`.
    pub log: Log,
}

/// Why the configuration was refused; each says where the value came from.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("the configuration file {path} is not valid TOML: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        message: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key `{key}`{}", .nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownKey {
        /// Where it stands.
        origin: String,
        /// The key.
        key: String,
        /// The nearest known key.
        nearest: Option<String>,
    },
    /// A value of the wrong kind.
    #[error("{origin}: `{key}` wants a {kind}: {message}")]
    Value {
        /// Where it stands.
        origin: String,
        /// The key.
        key: String,
        /// The kind of value.
        kind: &'static str,
        /// What is wrong.
        message: String,
    },
    /// A rule over several keys.
    #[error("{0}")]
    Rule(String),
}

/// A value from a flag: the dotted key and its text.
pub type Override = (String, String);

impl Config {
    /// Every key, in the order of the reference.
    pub fn fields() -> Vec<Field> {
        [Listen::fields(), Storage::fields(), Sql::fields(), Limits::fields(), Log::fields()].concat()
    }

    /// Reads the file, then the environment, then the flags.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
        flags: Vec<Override>,
    ) -> Result<Config, ConfigError> {
        let fields = Self::fields();
        let mut values: BTreeMap<String, (Value, String)> = BTreeMap::new();
        if let Some(path) = file {
            let text =
                std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
            let table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
                path: path.to_owned(),
                message: error.to_string(),
            })?;
            let origin = format!("configuration file {}", path.display());
            for (key, value) in flatten(table) {
                let field = known(&fields, &key, &origin)?;
                values.insert(field.path(), (value, origin.clone()));
            }
        }
        let mut variables: Vec<_> = variables.into_iter().filter(|(name, _)| name.starts_with("LATTICE_")).collect();
        variables.sort();
        for (name, text) in variables {
            if OTHER_VARIABLES.iter().any(|(other, _)| *other == name) {
                continue;
            }
            let Some(field) = fields.iter().find(|field| field.variable() == name) else {
                let names: Vec<String> = fields.iter().map(Field::variable).collect();
                return Err(ConfigError::UnknownKey {
                    origin: "environment".to_owned(),
                    nearest: nearest(&name, names.iter().map(String::as_str)),
                    key: name,
                });
            };
            values.insert(field.path(), (from_text(field, &text), format!("environment variable {name}")));
        }
        for (key, text) in flags {
            let field = known(&fields, &key, "command line")?;
            values.insert(field.path(), (from_text(field, &text), "command line".to_owned()));
        }

        let mut root = Table::new();
        for field in &fields {
            let Some((value, origin)) = values.remove(&field.path()) else { continue };
            (field.check)(&value).map_err(|message| ConfigError::Value {
                origin,
                key: field.path(),
                kind: field.kind,
                message,
            })?;
            let section = root.entry(section_name(field)).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(section) = section {
                section.insert(field.name.to_owned(), value);
            }
        }
        let config = Config {
            listen: section(&mut root, "listen")?,
            storage: section(&mut root, "storage")?,
            sql: section(&mut root, "sql")?,
            limits: section(&mut root, "limits")?,
            log: section(&mut root, "log")?,
        };
        config.check_ranges()?;
        Ok(config)
    }

    fn check_ranges(&self) -> Result<(), ConfigError> {
        let rule = |ok: bool, message: &str| if ok { Ok(()) } else { Err(ConfigError::Rule(message.to_owned())) };
        rule(!self.listen.data.is_empty(), "`data` must name a folder")?;
        rule(self.storage.row_tier.0 >= 1 << 20, "`storage.row_tier` must be at least 1MiB")?;
        rule(self.storage.journal_segment.0 >= 1 << 20, "`storage.journal_segment` must be at least 1MiB")?;
        rule(self.storage.merge_files >= 2, "`storage.merge_files` must be at least 2")?;
        rule(self.storage.flush_bytes.0 >= 1, "`storage.flush_bytes` must be at least 1 byte")?;
        rule(self.sql.memory.0 >= 16 << 20, "`sql.memory` must be at least 16MiB")?;
        rule(self.limits.message.0 >= 1 << 20, "`limits.message` must be at least 1MiB")?;
        rule(self.limits.row.0 >= 1 << 10, "`limits.row` must be at least 1KiB")?;
        rule(self.listen.keepalive.0 >= Duration::from_secs(1), "`keepalive` must be at least 1s")?;
        rule(
            self.listen.client_ca.is_empty() || self.has_tls(),
            "`client_ca` needs TLS: give `tls_cert` and `tls_key` too",
        )?;
        rule(self.limits.sessions >= 1, "`limits.sessions` must be at least 1")?;
        rule(
            self.listen.tls_cert.is_empty() == self.listen.tls_key.is_empty(),
            "TLS needs both `tls_cert` and `tls_key`: give the other one too",
        )
    }

    /// Resolves the addresses and applies the listening rule.
    pub fn addresses(&self, has_password: bool) -> Result<(SocketAddr, Option<SocketAddr>), ConfigError> {
        let flight = resolve("flight", &self.listen.flight)?;
        let http = if self.listen.http.is_empty() { None } else { Some(resolve("http", &self.listen.http)?) };
        for (key, address) in [("flight", Some(flight)), ("http", http)] {
            let Some(address) = address else { continue };
            if address.ip().is_loopback() || self.listen.insecure {
                continue;
            }
            let mut missing = Vec::new();
            if !has_password {
                missing.push("a password (set LATTICE_ADMIN_PASSWORD)");
            }
            if !self.has_tls() {
                missing.push("TLS (give --tls-cert and --tls-key)");
            }
            if !missing.is_empty() {
                return Err(ConfigError::Rule(format!(
                    "`{key}` = {address} listens beyond this machine, which needs {}; --insecure allows it without",
                    missing.join(" and ")
                )));
            }
        }
        Ok((flight, http))
    }

    /// Whether a certificate is configured.
    pub fn has_tls(&self) -> bool {
        !self.listen.tls_cert.is_empty()
    }
}

fn section_name(field: &Field) -> String {
    if field.section.is_empty() { "listen".to_owned() } else { field.section.to_owned() }
}

fn section<T: for<'de> Deserialize<'de> + Default>(root: &mut Table, name: &str) -> Result<T, ConfigError> {
    match root.remove(name) {
        None => Ok(T::default()),
        Some(value) => T::deserialize(value).map_err(|error| ConfigError::Rule(error.to_string())),
    }
}

fn flatten(table: Table) -> Vec<(String, Value)> {
    let mut out = Vec::new();
    for (name, value) in table {
        if let Value::Table(inner) = value {
            out.extend(inner.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
        } else {
            out.push((name, value));
        }
    }
    out
}

fn known<'a>(fields: &'a [Field], key: &str, origin: &str) -> Result<&'a Field, ConfigError> {
    fields.iter().find(|field| field.path() == key).ok_or_else(|| {
        let paths: Vec<String> = fields.iter().map(Field::path).collect();
        ConfigError::UnknownKey {
            origin: origin.to_owned(),
            key: key.to_owned(),
            nearest: nearest(key, paths.iter().map(String::as_str)),
        }
    })
}

/// Turns the text of a variable or flag into the TOML value that the key wants.
fn from_text(field: &Field, text: &str) -> Value {
    if field.kind == <Vec<String>>::KIND {
        return Value::Array(
            text.split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(|part| Value::String(part.to_owned()))
                .collect(),
        );
    }
    if field.kind == bool::KIND {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => return Value::Boolean(true),
            "false" | "0" | "no" | "off" => return Value::Boolean(false),
            _ => {}
        }
    }
    if field.kind == u64::KIND
        && let Ok(number) = text.parse()
    {
        return Value::Integer(number);
    }
    Value::String(text.to_owned())
}

fn resolve(key: &str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.to_socket_addrs().ok().and_then(|mut addresses| addresses.next()).ok_or_else(|| {
        ConfigError::Rule(format!(
            "`{key}` = \"{text}\" is not an address; write host:port, for example 127.0.0.1:50051"
        ))
    })
}

/// The known word closest to a misspelt one, when it is close enough to be meant.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    known
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The text of `docs/config.md`.
pub fn reference() -> String {
    let mut out = String::from(
        "# Configuration\n\n\
         <!-- Made from server/src/config.rs by `make fix`; a test keeps it current. -->\n\n\
         `lattice serve` needs no configuration. Settings come from, in rising order: the defaults below, a TOML file\n\
         (`--config FILE` or `LATTICE_CONFIG`), environment variables, flags. Keys and `LATTICE_*` variables that do not\n\
         exist are refused. Sizes are written `\"256MiB\"`, durations `\"250ms\"`, `\"30s\"`, `\"5min\"`, `\"2h\"`.\n\
         In an environment variable, a list is written with commas.\n",
    );
    let sections: [(&str, String, Vec<Field>); 5] = [
        ("Top of the file", Listen::about(), Listen::fields()),
        ("[storage]", Storage::about(), Storage::fields()),
        ("[sql]", Sql::about(), Sql::fields()),
        ("[limits]", Limits::about(), Limits::fields()),
        ("[log]", Log::about(), Log::fields()),
    ];
    for (title, about, fields) in sections {
        out.push_str(&format!(
            "\n## {title}\n\n{about}\n\n| key | value | default | variable | meaning |\n|---|---|---|---|---|\n"
        ));
        for field in fields {
            out.push_str(&format!(
                "| `{}` | {} | `{}` | `{}` | {} |\n",
                field.name,
                field.kind,
                field.default,
                field.variable(),
                field.doc.replace('|', "\\|")
            ));
        }
    }
    out.push_str("\n## Other variables\n\n| variable | meaning |\n|---|---|\n");
    for (name, doc) in OTHER_VARIABLES {
        out.push_str(&format!("| `{name}` | {doc} |\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, variables: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lattice.toml");
        std::fs::write(&path, file).unwrap();
        Config::load(
            Some(&path),
            variables.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())),
            flags.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
        )
    }

    #[test]
    fn later_layers_win() {
        let config = load(
            "data = \"from-file\"\nhttp = \"127.0.0.1:1\"\n[storage]\nrow_tier = \"256MiB\"\n[sql]\ncopy_folders = [\"/a\"]\n",
            &[("LATTICE_DATA", "from-env"), ("LATTICE_SQL_COPY_FOLDERS", "/x, /y"), ("LATTICE_LOG_FORMAT", "json")],
            &[("data", "from-flag")],
        )
        .unwrap();
        assert_eq!(config.listen.data, "from-flag");
        assert_eq!(config.listen.http, "127.0.0.1:1");
        assert_eq!(config.storage.row_tier, Bytes(256 << 20));
        assert_eq!(config.sql.copy_folders, ["/x", "/y"]);
        assert_eq!(config.log.format, LogFormat::Json);
        assert_eq!(config.limits, Limits::default());
    }

    #[test]
    fn unknown_keys_are_refused() {
        let error = load("[storage]\nrow_teir = 1\n", &[], &[]).unwrap_err().to_string();
        assert!(error.contains("unknown key `storage.row_teir`; did you mean `storage.row_tier`?"), "{error}");
        let error = load("", &[("LATTICE_DTA", "x")], &[]).unwrap_err().to_string();
        assert!(error.contains("environment: unknown key `LATTICE_DTA`; did you mean `LATTICE_DATA`?"), "{error}");
        assert!(load("", &[("LATTICE_ADMIN_PASSWORD", "x"), ("PATH", "y")], &[]).is_ok());
    }

    #[test]
    fn bad_values_name_their_origin() {
        let error = load("[storage]\nrow_tier = \"much\"\n", &[], &[]).unwrap_err().to_string();
        assert!(error.contains("`storage.row_tier` wants a size") && error.contains("256MiB"), "{error}");
        let error = load("", &[("LATTICE_INSECURE", "perhaps")], &[]).unwrap_err().to_string();
        assert!(error.starts_with("environment variable LATTICE_INSECURE"), "{error}");
        let error = load("", &[], &[("tls_cert", "a.pem")]).unwrap_err().to_string();
        assert!(error.contains("both `tls_cert` and `tls_key`"), "{error}");
        let error = load("", &[], &[("client_ca", "ca.pem")]).unwrap_err().to_string();
        assert!(error.contains("`client_ca` needs TLS"), "{error}");
        let error = load("keepalive = \"0s\"", &[], &[]).unwrap_err().to_string();
        assert!(error.contains("`keepalive` must be"), "{error}");
        assert!(load("data = ", &[], &[]).unwrap_err().to_string().contains("not valid TOML"));
    }

    #[test]
    fn listening_beyond_loopback_needs_password_and_tls() {
        let open = |flags: &[(&str, &str)], password: bool| load("", &[], flags).unwrap().addresses(password);
        assert!(open(&[], false).is_ok());
        assert!(open(&[("flight", "0.0.0.0:0")], false).unwrap_err().to_string().contains("LATTICE_ADMIN_PASSWORD"));
        assert!(open(&[("flight", "0.0.0.0:0")], true).unwrap_err().to_string().contains("--tls-cert"));
        assert!(open(&[("flight", "0.0.0.0:0"), ("insecure", "true")], false).is_ok());
        assert!(open(&[("http", "0.0.0.0:0"), ("tls_cert", "a"), ("tls_key", "b")], true).is_ok());
        assert!(open(&[("http", "")], false).unwrap().1.is_none());
        assert!(open(&[("flight", "nowhere")], false).is_err());
    }

    #[test]
    fn sizes_and_durations_read_as_they_print() {
        for text in ["1", "1KiB", "256MiB", "3GiB", "1TiB"] {
            assert_eq!(Bytes::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Bytes::parse("4 GB").unwrap().0, 4_000_000_000);
        for text in ["0s", "250ms", "30s", "5min", "2h"] {
            assert_eq!(Span::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_reference_is_current() {
        let path = Path::new("../docs/config.md");
        let text = reference();
        if std::env::var_os("LATTICE_BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == text, "docs/config.md is not current: run `make fix`");
    }
}

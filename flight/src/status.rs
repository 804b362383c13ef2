//! From errors to gRPC statuses.
//!
//! One table ([`code_of`]) says which status code each [`ErrorKind`] becomes; a test prints it to `docs/errors.md` and fails when
//! that page is stale. A status carries its particulars three times, because clients look in different places: the message is
//! written for people (code, message, an excerpt of the statement with a caret, detail, hint), `grpc-status-details-bin` holds a
//! `google.rpc.ErrorInfo`, and plain trailers (`lattice-sqlstate`, `lattice-position`, `lattice-detail-bin`, `lattice-hint-bin`)
//! hold the same for clients that do not parse protobuf.
//!
//! # Invariants
//! - STATUS-1 every kind has exactly one code, without a wildcard. Test: `the_table_in_the_docs_is_current`.
//! - STATUS-2 the SQLSTATE of an error reaches the client unchanged, in the message, the details and a trailer.
//!   Test: `a_status_carries_the_particulars`.
//! - STATUS-4 a status with its particulars is small enough for every client: the C++ one refuses headers above 8 KiB.
//!   Test: `deadlines_and_long_messages`.
//! - STATUS-3 the excerpt points at the right character whatever the script or the tabs before it. Test: `the_caret_points`.

use base::{Classify, ErrorKind};
use bytes::Bytes;
use prost::Message;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::error::Error;
use crate::messages::{ErrorInfo, RpcStatus};

/// The domain of our `google.rpc.ErrorInfo`.
const DOMAIN: &str = "latticedb";
/// Longest part of a line that the excerpt shows, in characters.
const EXCERPT_CHARS: usize = 100;
/// Longest message as gRPC sends it: in a header, where everything but plain ASCII takes three bytes.
const MESSAGE_BYTES: usize = 2048;
/// Longest of the other texts. Everything together has to stay below 8 KiB (STATUS-4).
const FIELD_BYTES: usize = 512;

/// The gRPC code of an error kind.
pub const fn code_of(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidInput => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::Conflict => Code::Aborted,
        ErrorKind::Indeterminate => Code::Unknown,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Internal => Code::Internal,
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        let error = match error {
            Error::Relayed(status) => return *status,
            other => other,
        };
        let code = match error {
            // The one refinement of the table: a deadline has a code of its own in gRPC.
            Error::DeadlineExceeded => Code::DeadlineExceeded,
            _ => code_of(error.kind()),
        };
        if matches!(error.kind(), ErrorKind::Internal | ErrorKind::Corrupt) {
            tracing::error!(error = %error, "a request failed by our fault");
        }
        let (detail, hint, position, statement) = match &error {
            Error::Sql { error, statement } => {
                (error.detail.as_deref(), error.hint.as_deref(), error.position, statement.as_deref())
            }
            _ => (None, None, None, None),
        };
        let sqlstate = error.sqlstate();
        let primary = error.to_string();

        let mut message = format!("{sqlstate}: {primary}");
        if let (Some(statement), Some(position)) = (statement, position)
            && let Some(excerpt) = excerpt(statement, position)
        {
            message.push('\n');
            message.push_str(&excerpt);
        }
        for (title, text) in [("DETAIL", detail), ("HINT", hint)] {
            if let Some(text) = text {
                message.push_str(&format!("\n{title}: {text}"));
            }
        }
        let message = clipped_header(message, MESSAGE_BYTES);

        let mut info = ErrorInfo { reason: sqlstate.to_string(), domain: DOMAIN.to_owned(), ..Default::default() };
        let mut metadata = MetadataMap::new();
        let mut put = |key: &'static str, trailer: &'static str, value: Option<String>| {
            let Some(value) = value else { return };
            let value = clipped(value, FIELD_BYTES);
            if trailer.ends_with("-bin") {
                metadata.insert_bin(trailer, MetadataValue::from_bytes(value.as_bytes()));
            } else if let Ok(value) = value.parse() {
                metadata.insert(trailer, value);
            }
            info.metadata.insert(key.to_owned(), value);
        };
        put("sqlstate", "lattice-sqlstate", Some(sqlstate.to_string()));
        put("kind", "lattice-kind", Some(kind_name(error.kind()).to_owned()));
        put("position", "lattice-position", position.map(|position| position.to_string()));
        put("message", "lattice-message-bin", Some(primary));
        put("detail", "lattice-detail-bin", detail.map(str::to_owned));
        put("hint", "lattice-hint-bin", hint.map(str::to_owned));

        let any = arrow_flight::sql::Any { type_url: ErrorInfo::URL.to_owned(), value: info.encode_to_vec().into() };
        let details =
            RpcStatus { code: code as i32, message: clipped(message.clone(), FIELD_BYTES), details: vec![any] };
        Status::with_details_and_metadata(code, message, Bytes::from(details.encode_to_vec()), metadata)
    }
}

/// The word for a kind, as trailers and `docs/errors.md` spell it.
fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidInput => "InvalidInput",
        ErrorKind::NotFound => "NotFound",
        ErrorKind::AlreadyExists => "AlreadyExists",
        ErrorKind::Unauthenticated => "Unauthenticated",
        ErrorKind::Denied => "Denied",
        ErrorKind::Conflict => "Conflict",
        ErrorKind::Indeterminate => "Indeterminate",
        ErrorKind::Unavailable => "Unavailable",
        ErrorKind::Cancelled => "Cancelled",
        ErrorKind::Exhausted => "Exhausted",
        ErrorKind::Unsupported => "Unsupported",
        ErrorKind::Corrupt => "Corrupt",
        ErrorKind::Internal => "Internal",
    }
}

/// Cuts a text at a character boundary.
fn clipped(mut text: String, bytes: usize) -> String {
    if text.len() > bytes {
        let mut end = bytes.saturating_sub('…'.len_utf8());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

/// Cuts a text so that its percent-encoded form is within a bound.
fn clipped_header(text: String, bytes: usize) -> String {
    let cost = |byte: u8| if matches!(byte, b' '..=b'~') && byte != b'%' { 1 } else { 3 };
    let mut sent = 0;
    let fits = text.bytes().take_while(|byte| {
        sent += cost(*byte);
        sent <= bytes
    });
    let fits = fits.count();
    clipped(text, fits)
}

/// The line of the statement that holds the character at `position` (from 1), and a caret under it.
fn excerpt(statement: &str, position: usize) -> Option<String> {
    let target = position.checked_sub(1)?;
    let mut start = 0;
    for (number, line) in statement.split('\n').enumerate() {
        let line_chars = line.chars().count();
        if target <= start + line_chars {
            let column = target - start;
            let from = column.saturating_sub(EXCERPT_CHARS / 2);
            let shown: String =
                line.chars().skip(from).take(EXCERPT_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
            let cut = if from > 0 { "…" } else { "" };
            let prefix = format!("LINE {}: {cut}", number + 1);
            let indent = prefix.chars().count() + column - from;
            return Some(format!("{prefix}{}\n{}^", shown.trim_end(), " ".repeat(indent)));
        }
        start += line_chars + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base::SqlState;

    use super::*;

    const KINDS: [ErrorKind; 13] = [
        ErrorKind::InvalidInput,
        ErrorKind::NotFound,
        ErrorKind::AlreadyExists,
        ErrorKind::Unauthenticated,
        ErrorKind::Denied,
        ErrorKind::Conflict,
        ErrorKind::Indeterminate,
        ErrorKind::Unavailable,
        ErrorKind::Cancelled,
        ErrorKind::Exhausted,
        ErrorKind::Unsupported,
        ErrorKind::Corrupt,
        ErrorKind::Internal,
    ];

    fn meaning(kind: ErrorKind) -> &'static str {
        match kind {
            ErrorKind::InvalidInput => "The request is wrong and stays wrong: correct it.",
            ErrorKind::NotFound => "A named object does not exist.",
            ErrorKind::AlreadyExists => "A named object or a key exists already.",
            ErrorKind::Unauthenticated => "Credentials are missing, wrong or expired: connect again.",
            ErrorKind::Denied => "This user may not do this.",
            ErrorKind::Conflict => "Another transaction won: retry the whole transaction.",
            ErrorKind::Indeterminate => "The outcome is unknown: it may have been committed. Look before you retry.",
            ErrorKind::Unavailable => "Not now or not here: retry later.",
            ErrorKind::Cancelled => "Stopped on request or by a timeout.",
            ErrorKind::Exhausted => "A named limit was reached: ask for less, or raise the limit.",
            ErrorKind::Unsupported => "Valid, but not something LatticeDB does.",
            ErrorKind::Corrupt => "Stored bytes are damaged: restore from a backup.",
            ErrorKind::Internal => "A defect of ours: please report it.",
        }
    }

    /// The class that the ADBC driver manager raises for a code.
    fn python(code: Code) -> &'static str {
        match code {
            Code::Ok => "",
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated => "`ProgrammingError`",
            Code::Unimplemented => "`NotSupportedError`",
            Code::Internal | Code::ResourceExhausted => "`InternalError`",
            Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss => "`OperationalError`",
        }
    }

    fn name(code: Code) -> String {
        let mut name = String::new();
        for c in format!("{code:?}").chars() {
            if c.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.extend(c.to_uppercase());
        }
        name
    }

    fn page() -> String {
        let mut page = String::from(
            "# Errors\n\n\
             Every error has a kind, a five-character SQLSTATE (PostgreSQL's codes) and a gRPC status code. This page is printed by a test\n\
             of the wire (`flight/src/status.rs`); run it with `LATTICE_BLESS=1` to write the page anew.\n\n\
             | kind | gRPC code | default SQLSTATE | Python (ADBC) | what it means |\n\
             |---|---|---|---|---|\n",
        );
        for kind in KINDS {
            let code = code_of(kind);
            page.push_str(&format!(
                "| {} | {} | {} | {} | {} |\n",
                kind_name(kind),
                name(code),
                kind.default_sqlstate(),
                python(code),
                meaning(kind)
            ));
        }
        page.push_str(
            "\nA request whose own `grpc-timeout` passes ends with DEADLINE_EXCEEDED (SQLSTATE 57014).\n\n\
             ## Where a client finds the particulars\n\n\
             - The message: `42P01: table \"oders\" does not exist`, then the line of the statement with a caret, then `DETAIL:` and `HINT:` lines.\n\
             - Trailers: `lattice-sqlstate`, `lattice-kind`, `lattice-position` (in characters, from 1), and in UTF-8 bytes `lattice-message-bin`,\n  \
               `lattice-detail-bin`, `lattice-hint-bin`. ADBC shows them as `error.details`.\n\
             - `grpc-status-details-bin`: a `google.rpc.Status` with one `google.rpc.ErrorInfo` (domain `latticedb`, reason the SQLSTATE).\n",
        );
        page
    }

    #[test]
    fn the_table_in_the_docs_is_current() {
        let path = "../docs/errors.md";
        let page = page();
        if std::env::var_os("LATTICE_BLESS").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        let there = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(there, page, "docs/errors.md is stale: run this test with LATTICE_BLESS=1");
    }

    #[test]
    fn a_status_carries_the_particulars() {
        let error = sql::Error::state(SqlState::UNDEFINED_TABLE, "table \"oders\" does not exist")
            .with_hint("did you mean \"orders\"?")
            .with_detail("Größe")
            .at(16);
        let statement: Arc<str> = "SELECT *\n FROM oders".into();
        let status = Status::from(Error::of_statement(error, &statement));
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(
            status.message(),
            "42P01: table \"oders\" does not exist\nLINE 2:  FROM oders\n              ^\nDETAIL: Größe\nHINT: did you mean \"orders\"?"
        );
        assert_eq!(status.metadata().get("lattice-sqlstate").unwrap(), "42P01");
        assert_eq!(status.metadata().get("lattice-position").unwrap(), "16");
        let detail = status.metadata().get_bin("lattice-detail-bin").unwrap().to_bytes().unwrap();
        assert_eq!(detail, "Größe".as_bytes());
        let rpc = RpcStatus::decode(status.details()).unwrap();
        assert_eq!(rpc.code, Code::NotFound as i32);
        let info = ErrorInfo::decode(rpc.details[0].value.clone()).unwrap();
        assert_eq!(info.reason, "42P01");
        assert_eq!(info.metadata["hint"], "did you mean \"orders\"?");
    }

    #[test]
    fn the_caret_points() {
        assert_eq!(excerpt("SELECT x", 8).unwrap(), "LINE 1: SELECT x\n               ^");
        assert_eq!(excerpt("a\n\tb", 4).unwrap(), "LINE 2:  b\n         ^");
        assert_eq!(excerpt("é ü", 3).unwrap(), "LINE 1: é ü\n          ^");
        assert!(excerpt("abc", 0).is_none());
        assert!(excerpt("abc", 9).is_none());
        let long = format!("{}y", "x".repeat(500));
        let shown = excerpt(&long, 501).unwrap();
        let mut lines = shown.lines();
        let (line, caret) = (lines.next().unwrap(), lines.next().unwrap());
        assert_eq!(line.chars().nth(caret.chars().count() - 1), Some('y'));
    }

    #[test]
    fn deadlines_and_long_messages() {
        assert_eq!(Status::from(Error::DeadlineExceeded).code(), Code::DeadlineExceeded);
        /// What the C++ client accepts by default.
        const TRAILERS_BYTES: usize = 8 << 10;
        for text in ["ü".repeat(9000), "x".repeat(9000), "%\n".repeat(5000)] {
            let error = sql::Error::syntax(text.clone()).with_detail(text.clone()).with_hint(text.clone()).at(7);
            let status = Status::from(Error::of_statement(error, &Arc::from(text)));
            let headers = status.clone().into_http::<()>();
            let bytes: usize =
                headers.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
            assert!(bytes < TRAILERS_BYTES, "{bytes}");
            assert!(status.message().ends_with('…') && status.message().len() > 600, "{}", status.message());
        }
    }
}

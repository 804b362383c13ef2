//! Log lines: to standard error, as text or JSON, filtered by level.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat};

/// Starts logging for this process.
pub fn start(log: &Log) -> Result<(), String> {
    // Libraries below us speak at their own length; unless asked for by name they only warn.
    let text = if log.level.contains(',') || log.level.contains('=') {
        log.level.clone()
    } else {
        let ours = ["server", "flight", "sql", "storage", "raft", "journal", "rows", "columns", "runtime", "codec"];
        let quiet = if matches!(log.level.as_str(), "error" | "warn") { log.level.as_str() } else { "warn" };
        let mut parts = vec![quiet.to_owned()];
        parts.extend(ours.iter().map(|name| format!("lattice_{name}={}", log.level)));
        // Openraft reports every leadership step as a warning or an error of its own; the raft crate reports what matters.
        parts.push("openraft=error".to_owned());
        parts.join(",")
    };
    let filter = EnvFilter::try_new(&text)
        .map_err(|error| format!("`log.level` = \"{}\" cannot be read: {error}", log.level))?;
    let registry = tracing_subscriber::registry().with(filter);
    let started = match log.format {
        LogFormat::Text => {
            let layer = tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(std::io::stderr().is_terminal());
            registry.with(layer).try_init()
        }
        LogFormat::Json => {
            let layer = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
            registry.with(layer).try_init()
        }
    };
    started.map_err(|error| format!("logging cannot start: {error}"))
}

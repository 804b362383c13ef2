//! What the server counts, in Prometheus' text form.
//!
//! Parts of the server keep plain counters; one table here names them. A scrape reads them, nothing is updated twice.

use std::fmt::Write as _;
use std::time::SystemTime;

use sql::EngineMetrics;
use storage::StoreStats;

/// Everything a scrape reads.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Counters of the SQL engine.
    pub engine: EngineMetrics,
    /// Counters of the store.
    pub store: StoreStats,
    /// Counters of the wire.
    pub wire: flight::Metrics,
    /// When the process began to serve.
    pub started_at: SystemTime,
    /// The process itself.
    pub process: Process,
}

/// What the operating system says about this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    /// Resident memory.
    pub resident_bytes: u64,
    /// Open descriptors.
    pub open_fds: u64,
    /// Threads.
    pub threads: u64,
}

impl Process {
    /// Reads `/proc/self`; zeros where there is none.
    pub fn read() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let value = |name: &str| -> u64 {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
                .unwrap_or_default()
        };
        let open_fds = std::fs::read_dir("/proc/self/fd").map(|entries| entries.count()).unwrap_or_default();
        Self {
            resident_bytes: value("VmRSS:") * 1024,
            threads: value("Threads:"),
            open_fds: u64::try_from(open_fds).unwrap_or_default(),
        }
    }
}

struct Metric {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&Sources) -> u64,
}

macro_rules! metrics {
    ($($name:literal $kind:ident $help:literal $value:expr;)*) => {
        const METRICS: &[Metric] = &[$( Metric { name: $name, kind: stringify!($kind), help: $help, value: $value } ),*];
    };
}

fn count(value: usize) -> u64 {
    u64::try_from(value).unwrap_or(u64::MAX)
}

metrics! {
    "lattice_sql_statements_total" counter "Statements begun." |s| s.engine.statements;
    "lattice_sql_statements_failed_total" counter "Statements that ended with an error." |s| s.engine.failed;
    "lattice_sql_statements_cancelled_total" counter "Statements cancelled by a client, an administrator or a timeout." |s| s.engine.cancelled;
    "lattice_sql_statements_running" gauge "Statements running now." |s| s.engine.running;
    "lattice_sql_sessions" gauge "Open sessions." |s| s.engine.sessions;
    "lattice_sql_rows_sent_total" counter "Rows sent to clients." |s| s.engine.rows_sent;
    "lattice_sql_rows_written_total" counter "Rows written by statements." |s| s.engine.rows_written;
    "lattice_sql_transactions_committed_total" counter "Transactions committed." |s| s.engine.commits;
    "lattice_sql_transactions_rolled_back_total" counter "Transactions rolled back." |s| s.engine.rollbacks;
    "lattice_sql_conflicts_total" counter "Statements and commits that failed with 40001, for their clients to run again." |s| s.engine.conflicts;
    "lattice_sql_plans_made_total" counter "Executions of SELECT, INSERT, UPDATE, DELETE and MERGE that were planned." |s| s.engine.plans_made;
    "lattice_sql_plans_reused_total" counter "Executions that used the plan of an earlier one, or of their preparation." |s| s.engine.plans_reused;
    "lattice_sql_memory_bytes" gauge "Memory reserved by running queries." |s| s.engine.memory_used;
    "lattice_flight_connections_total" counter "Connections accepted." |s| s.wire.connections;
    "lattice_flight_sessions" gauge "Sessions of Flight SQL clients." |s| s.wire.sessions;
    "lattice_flight_streams_total" counter "Results begun." |s| s.wire.streams;
    "lattice_flight_streams_active" gauge "Results being sent now." |s| s.wire.active_streams;
    "lattice_flight_results_pinned" gauge "Results that wait to be fetched and hold the row versions they will read." |s| s.wire.results_pinned;
    "lattice_flight_rows_sent_total" counter "Rows sent." |s| s.wire.rows_sent;
    "lattice_flight_sent_bytes_total" counter "Arrow data sent to clients, in bytes." |s| s.wire.bytes_sent;
    "lattice_flight_received_bytes_total" counter "Arrow data received from clients, in bytes." |s| s.wire.bytes_received;
    "lattice_flight_rows_ingested_total" counter "Rows loaded by bulk ingestion." |s| s.wire.rows_ingested;
    "lattice_flight_logins_failed_total" counter "Log-ins with wrong credentials." |s| s.wire.logins_failed;
    "lattice_flight_logins_throttled_total" counter "Log-ins that had to wait, or were refused unchecked, after failed ones." |s| s.wire.logins_throttled;
    "lattice_storage_commits_total" counter "Commits in the log." |s| s.store.commits;
    "lattice_storage_groups_total" counter "Log entries that carried commits: less than the commits when they share." |s| s.store.groups;
    "lattice_storage_conflicts_total" counter "Times a transaction met a row that another had committed since its snapshot, in a statement or at its commit. Autocommit statements are then tried again." |s| s.store.conflicts;
    "lattice_storage_lock_waits_total" counter "Waits for a row lock." |s| s.store.lock_waits;
    "lattice_storage_deadlocks_total" counter "Transactions that gave up because they waited for each other." |s| s.store.deadlocks;
    "lattice_storage_flushes_total" counter "Moves of rows from the row tier to the column tier." |s| s.store.flushes;
    "lattice_storage_merges_total" counter "Merges of small columnar files." |s| s.store.merges;
    "lattice_storage_last_commit_microseconds" gauge "Timestamp of the newest commit, in microseconds since 1970." |s| u64::try_from(s.store.last_commit.0).unwrap_or_default();
    "lattice_storage_disk_low" gauge "1 while writes are refused because the disk is almost full." |s| u64::from(s.store.disk_low);
    "lattice_journal_fsyncs_total" counter "Synchronisations of the log to disk." |s| s.store.fsyncs;
    "lattice_journal_bytes" gauge "Length of the log." |s| s.store.log_bytes;
    "lattice_rows_bytes" gauge "Memory used by the row tier." |s| count(s.store.row_tier_bytes);
    "lattice_rows_limit_bytes" gauge "Memory the row tier may use before writers wait." |s| count(s.store.row_tier_limit_bytes);
    "lattice_rows_scanned_total" counter "Rows that queries read from the row tier." |s| s.store.rows_scanned_row_tier;
    "lattice_columns_scanned_total" counter "Rows that queries read from the column tier." |s| s.store.rows_scanned_columns;
    "process_resident_memory_bytes" gauge "Resident memory of the process." |s| s.process.resident_bytes;
    "process_open_fds" gauge "Open file descriptors of the process." |s| s.process.open_fds;
    "process_threads" gauge "Threads of the process." |s| s.process.threads;
    "process_start_time_seconds" gauge "When the process started, in seconds since 1970." |s| s.started_at.duration_since(SystemTime::UNIX_EPOCH).map(|at| at.as_secs()).unwrap_or_default();
}

/// Calls of the wire, the one metric with labels besides the version.
const CALLS: (&str, &str) =
    ("lattice_flight_calls_total", "Flight calls that have ended, by `method` and gRPC `code`.");

/// The text that `/metrics` answers.
pub fn render(sources: &Sources) -> String {
    let mut out = String::new();
    for metric in METRICS {
        let _infallible = writeln!(
            out,
            "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}",
            name = metric.name,
            help = metric.help,
            kind = metric.kind,
            value = (metric.value)(sources)
        );
    }
    let (name, help) = CALLS;
    let _infallible = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
    for flight::Calls { method, code, count } in &sources.wire.calls {
        let _infallible = writeln!(out, "{name}{{method=\"{method}\",code=\"{code}\"}} {count}");
    }
    let _infallible = writeln!(
        out,
        "# HELP lattice_build_info The running version.\n# TYPE lattice_build_info gauge\nlattice_build_info{{version=\"{}\"}} 1",
        env!("CARGO_PKG_VERSION")
    );
    out
}

/// The text of `docs/metrics.md`.
#[cfg(test)]
fn reference() -> String {
    let mut out = String::from(
        "# Metrics\n\n<!-- Made from server/src/metrics.rs by `make fix`; a test keeps it current. -->\n\n\
         `GET /metrics` on the HTTP port answers in Prometheus' text form.\n\n| metric | kind | meaning |\n|---|---|---|\n",
    );
    for metric in METRICS {
        let _infallible = writeln!(out, "| `{}` | {} | {} |", metric.name, metric.kind, metric.help);
    }
    let (name, help) = CALLS;
    let _infallible = writeln!(out, "| `{name}` | counter | {help} |");
    out.push_str("| `lattice_build_info` | gauge | The running version, as label `version`. |\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_current() {
        let path = std::path::Path::new("../docs/metrics.md");
        let text = reference();
        if std::env::var_os("LATTICE_BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert!(
            std::fs::read_to_string(&path).unwrap_or_default() == text,
            "docs/metrics.md is not current: run `make fix`"
        );
    }

    #[test]
    fn names_follow_the_convention() {
        for metric in METRICS {
            assert_eq!(metric.kind == "counter", metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
        assert!(Process::read().resident_bytes > 0);
    }
}

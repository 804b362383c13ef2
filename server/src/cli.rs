//! The command line: what `lattice --help` shows.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{Config, ConfigError, LogFormat, Override};
use crate::{backup, check, load, measure, serve, shell};

/// LatticeDB: one server for transactions and analytics over Arrow Flight SQL
#[derive(Debug, Parser)]
#[command(name = "lattice", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Serve(Box<ServeArgs>),
    /// Talk SQL to a server
    Sql(Box<shell::SqlArgs>),
    /// Load Parquet, CSV or JSON files into a table
    Load(Box<load::LoadArgs>),
    /// Read everything in the database of a stopped server, and verify checksums, keys and references
    Check(Box<ServeArgs>),
    /// Run statements in this process, for benchmarks
    #[command(hide = true)]
    Measure(Box<measure::MeasureArgs>),
    /// Copy the database, while its server runs, to a folder or an object store
    Backup(Box<backup::BackupArgs>),
    /// Make a new database from a backup
    Restore(Box<backup::RestoreArgs>),
    /// Print every setting of the server: its meaning, default and environment variable
    Config,
    /// Print the version
    Version,
}

/// Flags of `lattice serve`; each stands for a key of the configuration.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ServeArgs {
    /// Configuration file (TOML)
    #[arg(long, env = "LATTICE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Folder of the database [default: lattice-data]
    #[arg(long, value_name = "DIR")]
    pub data: Option<String>,
    /// Address for Flight SQL [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDRESS")]
    pub flight: Option<String>,
    /// Address for the status page, health and metrics; empty for none [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS")]
    pub http: Option<String>,
    /// PEM file with the certificate chain
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<String>,
    /// PEM file with the private key
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<String>,
    /// PEM file with the certificates that sign those of clients; clients must then show one
    #[arg(long, value_name = "FILE")]
    pub client_ca: Option<String>,
    /// Listen beyond loopback without password or TLS
    #[arg(long)]
    pub insecure: bool,
    /// Log level or filter [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Log lines as text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Any other key of the configuration, such as storage.row_tier=1GiB; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl clap::ValueEnum for LogFormat {
    fn value_variants<'a>() -> &'a [Self] {
        &[LogFormat::Text, LogFormat::Json]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        }))
    }
}

impl ServeArgs {
    /// The configuration that file, environment and these flags give together.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let mut flags: Vec<Override> = Vec::new();
        for entry in &self.set {
            let (key, value) = entry
                .split_once('=')
                .ok_or_else(|| ConfigError::Rule(format!("--set {entry}: write --set key=value")))?;
            flags.push((key.trim().to_owned(), value.trim().to_owned()));
        }
        let named = [
            ("data", &self.data),
            ("flight", &self.flight),
            ("http", &self.http),
            ("tls_cert", &self.tls_cert),
            ("tls_key", &self.tls_key),
            ("client_ca", &self.client_ca),
            ("log.level", &self.log_level),
        ];
        flags.extend(named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?))));
        if self.insecure {
            flags.push(("insecure".to_owned(), "true".to_owned()));
        }
        if let Some(format) = self.log_format {
            let text = if format == LogFormat::Json { "json" } else { "text" };
            flags.push(("log.format".to_owned(), text.to_owned()));
        }
        let variables =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Config::load(self.config.as_deref(), variables, flags)
    }
}

/// Parses the command line and runs the command.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let workers = match &cli.command {
        // The client commands have one connection to keep; the server takes every core.
        Command::Sql(_) | Command::Load(_) => Some(2),
        _ => None,
    };
    match cli.command {
        Command::Version => {
            println!("lattice {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Command::Config => {
            print!("{}", crate::config::reference());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(workers) = workers {
        builder.worker_threads(workers);
    }
    // Query plans nest deep; the default stack of a worker is too small for the deepest plans of unoptimised builds.
    let runtime = match builder.enable_all().thread_stack_size(8 << 20).thread_name("lattice").build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lattice: threads cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(async {
        match cli.command {
            Command::Serve(args) => serve::run(&args).await,
            Command::Check(args) => check::run(&args).await,
            Command::Measure(args) => measure::run(&args).await,
            Command::Sql(args) => shell::run(*args).await,
            Command::Load(args) => load::run(*args).await,
            Command::Backup(args) => backup::backup(*args).await,
            Command::Restore(args) => backup::restore(*args).await,
            Command::Version | Command::Config => ExitCode::SUCCESS,
        }
    });
    // A blocked reader thread must not hold up the end of the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    code
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}

//! `lattice check`: opens the database of a stopped server and reads all of it.
//!
//! Opening verifies the checksums of the checkpoint and of the whole log, as every start does. Then each table is read
//! row by row from whatever file holds it, and what its definition promises is verified: the stored row count, NOT NULL,
//! unique keys, and foreign keys.

use std::process::ExitCode;
use std::time::Instant;

use base::Principal;
use futures::TryStreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use sql::{Engine, Outcome, Session, SessionOptions, TableFilter, TableMeta};

use crate::cli::ServeArgs;
use crate::serve;

/// Runs the command: 0 when everything is sound, 1 when something is not or the database cannot be opened.
pub async fn run(args: &ServeArgs) -> ExitCode {
    match check(args).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(faults) => {
            eprintln!(
                "lattice check: {faults} faults found; restore from a backup, or ask for help before writing to this database"
            );
            ExitCode::FAILURE
        }
        Err(message) => {
            eprintln!("lattice check: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn check(args: &ServeArgs) -> Result<usize, String> {
    let config = args.load().map_err(|error| error.to_string())?;
    let data = std::path::Path::new(&config.listen.data);
    if !data.is_dir() {
        return Err(format!("{} is not a folder: name the database with --data", data.display()));
    }
    let started = Instant::now();
    let store = serve::open_store(&config).await?;
    let engine =
        Engine::open(store.clone(), serve::engine_options(&config)).await.map_err(|error| serve::describe(&error))?;
    println!("checkpoint and log are sound");
    let session = engine.session(Principal::admin(), SessionOptions::default());
    let filter = TableFilter { types: vec!["TABLE".to_owned()], ..TableFilter::default() };
    let tables = session.tables(filter).await.map_err(|error| serve::describe(&error))?;
    let bar = ProgressBar::new(u64::try_from(tables.len()).unwrap_or_default());
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} tables {elapsed}  {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let (mut rows, mut faults) = (0, 0);
    for table in &tables {
        bar.set_message(format!("{}.{}", table.schema, table.name));
        let (count, wrong) = one(&session, table).await;
        for fault in &wrong {
            bar.suspend(|| println!("{}.{}: {fault}", table.schema, table.name));
        }
        rows += count;
        faults += wrong.len();
        bar.inc(1);
    }
    bar.finish_and_clear();
    session.close().await;
    engine.shutdown().await;
    store.shutdown().await.map_err(|error| serve::describe(&error))?;
    println!(
        "{} tables with {rows} rows read in {:.1} s, {faults} faults",
        tables.len(),
        started.elapsed().as_secs_f64()
    );
    Ok(faults)
}

/// Reads one table; the number of its rows, and what is wrong with it.
async fn one(session: &Session, table: &TableMeta) -> (u64, Vec<String>) {
    let mut faults = Vec::new();
    let name = format!("{}.{}", quoted(&table.schema), quoted(&table.name));
    let read = match scan(session, &format!("SELECT * FROM {name}")).await {
        Ok(rows) => rows,
        Err(error) => {
            faults.push(format!("cannot be read: {error}"));
            return (0, faults);
        }
    };
    let mut expect_none = Vec::new();
    let nulls: Vec<String> = table
        .arrow
        .fields()
        .iter()
        .zip(&table.columns)
        .filter(|(_, column)| !column.nullable)
        .map(|(field, _)| format!("{} IS NULL", quoted(field.name())))
        .collect();
    if !nulls.is_empty() {
        expect_none.push((
            "rows with NULL in a NOT NULL column",
            format!("SELECT count(*) FROM {name} WHERE {}", nulls.join(" OR ")),
        ));
    }
    let catalog = Some(table.catalog.as_str());
    let schema = Some(table.schema.as_str());
    match session.primary_keys(catalog, schema, &table.name).await {
        Ok(keys) if keys.is_empty() => {}
        Ok(keys) => {
            let columns = keys.iter().map(|key| quoted(&key.column)).collect::<Vec<_>>().join(", ");
            expect_none.push((
                "primary keys that occur more than once",
                format!("SELECT count(*) FROM (SELECT {columns} FROM {name} GROUP BY {columns} HAVING count(*) > 1) AS twice"),
            ));
        }
        Err(error) => faults.push(serve::describe(&error)),
    }
    match session.imported_keys(catalog, schema, &table.name).await {
        Ok(keys) => {
            let mut names: Vec<&str> = keys.iter().map(|key| key.fk_name.as_str()).collect();
            names.dedup();
            for fk in names {
                let pairs: Vec<_> = keys.iter().filter(|key| key.fk_name == fk).collect();
                let Some(first) = pairs.first() else { continue };
                let parent = format!("{}.{}", quoted(&first.pk_schema), quoted(&first.pk_table));
                let set =
                    pairs.iter().map(|pair| format!("c.{} IS NOT NULL", quoted(&pair.fk_column))).collect::<Vec<_>>();
                let equal = pairs
                    .iter()
                    .map(|pair| format!("p.{} = c.{}", quoted(&pair.pk_column), quoted(&pair.fk_column)))
                    .collect::<Vec<_>>();
                expect_none.push((
                    "rows that refer to a row that is not there",
                    format!(
                        "SELECT count(*) FROM {name} c WHERE {} AND NOT EXISTS (SELECT 1 FROM {parent} p WHERE {})",
                        set.join(" AND "),
                        equal.join(" AND ")
                    ),
                ));
            }
        }
        Err(error) => faults.push(serve::describe(&error)),
    }
    match number(session, &format!("SELECT count(*) FROM {name}")).await {
        Ok(stored) if stored == read => {}
        Ok(stored) => faults.push(format!("{stored} rows are counted, {read} are there")),
        Err(error) => faults.push(error),
    }
    for (what, query) in expect_none {
        match number(session, &query).await {
            Ok(0) => {}
            Ok(count) => faults.push(format!("{count} {what}")),
            Err(error) => faults.push(error),
        }
    }
    (read, faults)
}

/// Reads every row and counts them.
async fn scan(session: &Session, query: &str) -> Result<u64, String> {
    let mut count = 0;
    for outcome in session.run(query).await.map_err(|error| serve::describe(&error))? {
        if let Outcome::Rows(mut rows) = outcome {
            while let Some(batch) = rows.stream.try_next().await.map_err(|error| serve::describe(&error))? {
                count += u64::try_from(batch.num_rows()).unwrap_or_default();
            }
        }
    }
    Ok(count)
}

/// The single number that a query answers.
async fn number(session: &Session, query: &str) -> Result<u64, String> {
    use arrow::array::AsArray;
    use arrow::datatypes::Int64Type;
    for outcome in session.run(query).await.map_err(|error| serve::describe(&error))? {
        if let Outcome::Rows(rows) = outcome {
            for batch in rows.collect().await.map_err(|error| serve::describe(&error))? {
                if batch.num_rows() == 1 {
                    let column = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Int64)
                        .map_err(|error| error.to_string())?;
                    return u64::try_from(column.as_primitive::<Int64Type>().value(0))
                        .map_err(|error| error.to_string());
                }
            }
        }
    }
    Err(format!("no answer to: {query}"))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

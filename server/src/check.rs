//! `lattice check`: verifies the database of a stopped server, and changes nothing of it.
//!
//! The store is opened on a disk that forgets what is written, which verifies the checkpoint and the whole log as every
//! start does. Then everything in the column tier is compared with what the log says of it (see [`storage::Verified`]),
//! every index with its table, and every table with its definition: the stored row count, NOT NULL, CHECK, unique keys and
//! foreign keys.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::Principal;
use futures::TryStreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use runtime::{OverlayDisk, RealDisk, Runtime, SystemClock};
use sql::{Engine, EngineOptions, Outcome, Session, SessionOptions, TableFilter, TableMeta};
use storage::{OnProgress, Store, StoreOptions};

use crate::cli::ServeArgs;
use crate::serve;
use crate::words::{counted, size};

/// Unnamed files that are listed one by one.
const LISTED_MAX: usize = 50;

/// Runs the command: 0 when everything is sound, 1 when something is not or the database cannot be opened.
pub async fn run(args: &ServeArgs) -> ExitCode {
    match check(args).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(faults) => {
            let faults = counted(faults, "fault");
            eprintln!(
                "lattice check: {faults} found; restore a backup, or ask for help before writing to this database"
            );
            ExitCode::FAILURE
        }
        Err(message) => {
            eprintln!("lattice check: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Says now and then how far it is: as a bar where somebody watches, in lines elsewhere.
#[derive(Clone)]
struct Teller {
    bar: ProgressBar,
    watched: bool,
    told: Arc<parking_lot::Mutex<Instant>>,
}

impl Teller {
    const EVERY: Duration = Duration::from_secs(2);

    fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}  {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, watched: std::io::stderr().is_terminal(), told: Arc::new(parking_lot::Mutex::new(Instant::now())) }
    }

    fn tell(&self, what: &str) {
        self.bar.set_message(what.to_owned());
        let mut told = self.told.lock();
        if !self.watched && told.elapsed() >= Self::EVERY {
            *told = Instant::now();
            eprintln!("{what}");
        }
    }
}

async fn check(args: &ServeArgs) -> Result<u64, String> {
    let config = args.load().map_err(|error| error.to_string())?;
    let data = std::path::Path::new(&config.listen.data);
    if !data.is_dir() {
        return Err(format!("{} is not a folder: name the database with --data", data.display()));
    }
    if !data.join("LATTICE").is_file() {
        return Err(format!("{} is not the data folder of a LatticeDB server", data.display()));
    }
    let started = Instant::now();
    let teller = Teller::new();
    let mut options = serve::store_options(&config);
    options.inspect = true;
    let listing = storage::listing(&Runtime::real(), &options).await.map_err(|error| serve::describe(&error))?;
    let store = open(options, &teller).await?;
    println!("checkpoint and log are sound");
    let mut engine_options = serve::engine_options(&config);
    engine_options.spill_folder = None;
    let (faults, summary) = verify(&store, engine_options, &listing, &teller, |fault| {
        teller.bar.suspend(|| println!("{fault}"));
    })
    .await;
    teller.bar.finish_and_clear();
    store.shutdown().await.map_err(|error| serve::describe(&error))?;
    println!("{summary} read in {:.1} s, {}", started.elapsed().as_secs_f64(), counted(faults, "fault"));
    Ok(faults)
}

/// Opens the store so that nothing of it changes.
async fn open(options: StoreOptions, teller: &Teller) -> Result<Store, String> {
    let disk = OverlayDisk::new(Arc::new(RealDisk::new()));
    let runtime = Runtime { clock: Arc::new(SystemClock::new()), disk: Arc::new(disk) };
    let opening = Store::open(runtime, options);
    tokio::pin!(opening);
    loop {
        tokio::select! {
            opened = &mut opening => return opened.map_err(|error| serve::describe(&error)),
            () = tokio::time::sleep(Teller::EVERY) => teller.tell("reading the checkpoint and the log"),
        }
    }
}

/// Verifies an open store; returns the number of faults, and what was read, in words.
async fn verify(
    store: &Store,
    engine_options: EngineOptions,
    listing: &[(String, u64)],
    teller: &Teller,
    fault: impl Fn(String),
) -> (u64, String) {
    let mut faults = 0_u64;
    let mut report = |text: String| {
        faults += 1;
        fault(text);
    };
    let engine = match Engine::open(store.clone(), engine_options).await {
        Ok(engine) => Some(engine),
        Err(error) => {
            report(format!(
                "the catalog cannot be read, so names and constraints are not checked: {}",
                serve::describe(&error)
            ));
            None
        }
    };
    let mut names = HashMap::new();
    if let Some(engine) = &engine {
        match engine.stored_names().await {
            Ok(all) => names.extend(all),
            Err(error) => report(format!("the catalog cannot be read: {}", serve::describe(&error))),
        }
    }
    let progress: OnProgress = {
        let teller = teller.clone();
        Arc::new(move |progress| {
            teller.tell(&format!(
                "{} of {}, {}",
                progress.objects,
                counted(progress.objects_total, "file"),
                size(progress.bytes)
            ));
        })
    };
    let seen = store.verify(listing, progress).await;
    for problem in &seen.problems {
        let name = problem.table.map(|table| names.get(&table).cloned().unwrap_or_else(|| format!("table {table}")));
        let name = name.map(|name| format!("{name}: ")).unwrap_or_default();
        report(format!("{name}{}: {}; {}", problem.object, problem.what, problem.advice));
    }
    // What only follows from a fault that was named is no fault of its own.
    let follows = |what: &str| seen.problems.iter().any(|problem| what.contains(&problem.object));
    let (mut rows, mut tables_read) = (0, 0);
    if let Some(engine) = &engine {
        let session = engine.session(Principal::admin(), SessionOptions::default());
        let filter = TableFilter { types: vec!["TABLE".to_owned()], ..TableFilter::default() };
        match session.tables(filter).await {
            Ok(tables) => {
                tables_read = tables.len();
                for table in &tables {
                    teller.tell(&format!("{}.{}", table.schema, table.name));
                    let (count, wrong) = one(&session, table).await;
                    rows += count;
                    for what in wrong.into_iter().filter(|what| !follows(what)) {
                        report(format!("{}.{}: {what}; restore a backup, or mend the rows", table.schema, table.name));
                    }
                }
            }
            Err(error) => report(format!("the tables cannot be listed: {}", serve::describe(&error))),
        }
        match engine.verify_indexes(|name| teller.tell(name)).await {
            Ok(found) => {
                for wrong in found.into_iter().filter(|wrong| !follows(&wrong.what)) {
                    report(format!(
                        "{}, index {}: {}; drop the index and create it again",
                        wrong.table, wrong.index, wrong.what
                    ));
                }
            }
            Err(error) => report(format!("the indexes cannot be compared: {}", serve::describe(&error))),
        }
        session.close().await;
        engine.shutdown().await;
    }
    if !seen.orphans.is_empty() {
        let bytes: u64 = seen.orphans.iter().map(|(_, bytes)| bytes).sum();
        println!(
            "{} ({}) belonging to nothing, as a crash leaves behind: no fault, and the next start or flush removes what it knows:",
            counted(seen.orphans.len() as u64, "file"),
            size(bytes)
        );
        for (path, bytes) in seen.orphans.iter().take(LISTED_MAX) {
            println!("  {path} ({bytes} bytes)");
        }
        if seen.orphans.len() > LISTED_MAX {
            println!("  … and {} more", seen.orphans.len() - LISTED_MAX);
        }
    }
    let summary = format!(
        "{} with {}, {} with {}",
        counted(tables_read as u64, "table"),
        counted(rows, "row"),
        counted(seen.files, "file"),
        size(seen.bytes)
    );
    (faults, summary)
}

/// Names of both sides of a foreign key. No column is likely to be called so: inside the subquery a column would win.
const CHILD: &str = "\"the child row\"";
const PARENT: &str = "\"the parent row\"";

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
            "rows with NULL in a NOT NULL column".to_owned(),
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
                "primary keys that occur more than once".to_owned(),
                format!("SELECT count(*) FROM (SELECT {columns} FROM {name} GROUP BY {columns} HAVING count(*) > 1) AS twice"),
            ));
        }
        Err(error) => faults.push(serve::describe(&error)),
    }
    match session.check_constraints(catalog, schema, &table.name).await {
        Ok(checks) => expect_none.extend(checks.into_iter().map(|(check, condition)| {
            let broken = format!("SELECT count(*) FROM {name} WHERE NOT ({condition})");
            (format!("rows that break the constraint {check}, which demands {condition}"), broken)
        })),
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
                let set = pairs
                    .iter()
                    .map(|pair| format!("{CHILD}.{} IS NOT NULL", quoted(&pair.fk_column)))
                    .collect::<Vec<_>>();
                let equal = pairs
                    .iter()
                    .map(|pair| format!("{PARENT}.{} = {CHILD}.{}", quoted(&pair.pk_column), quoted(&pair.fk_column)))
                    .collect::<Vec<_>>();
                expect_none.push((
                    "rows that refer to a row that is not there".to_owned(),
                    format!(
                        "SELECT count(*) FROM {name} {CHILD} WHERE {} AND NOT EXISTS (SELECT 1 FROM {parent} {PARENT} WHERE {})",
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

#[cfg(test)]
mod tests {
    use arrow::array::RecordBatch;
    use storage::{BeginOptions, KeyCodec, Locator, ScanSpec};

    use super::*;

    async fn found(store: &Store) -> Vec<String> {
        let faults = parking_lot::Mutex::new(Vec::new());
        verify(store, EngineOptions::default(), &[], &Teller::new(), |fault| faults.lock().push(fault)).await;
        faults.into_inner()
    }

    /// Deletes a row behind the back of SQL.
    async fn delete_row(store: &Store, table: base::TableId, row: usize) {
        let schema = store.definition(table).unwrap();
        let transaction = store.begin(BeginOptions::default()).await.unwrap();
        let view = transaction.view(&schema).unwrap();
        let mut keys = Vec::new();
        for partition in view.partitions(1) {
            let batches: Vec<RecordBatch> =
                view.scan(&partition, &ScanSpec::new(schema.key.clone())).try_collect().await.unwrap();
            for batch in batches {
                keys.extend(KeyCodec::new(&schema).unwrap().keys_of_columns(batch.columns()).unwrap());
            }
        }
        keys.sort_unstable();
        let key = vec![keys[row].clone()];
        let at: Vec<Locator> = view.find(&key).await.unwrap().into_iter().map(|found| found.unwrap().locator).collect();
        transaction.delete(&schema, &key, &at).await.unwrap();
        transaction.commit().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn rows_that_break_their_definition_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let mut options = StoreOptions::new(folder.path().to_owned());
        options.flush_interval_ms = 0;
        options.segment_bytes = 1 << 20;
        let store = Store::open(Runtime::real(), options).await.unwrap();
        let engine = Engine::open(store.clone(), EngineOptions::default()).await.unwrap();
        let session = engine.session(Principal::admin(), SessionOptions::default());
        for statement in [
            "create table p (id int primary key constraint small check (p.id < 9), v text not null, c text, p text)",
            "create table c (id int primary key, p int references p, w int)",
            "create index c_w on c (w)",
            "insert into p values (1, 'a'), (2, 'b')",
            "insert into c values (1, 1, 5), (2, 2, 6), (3, null, 7)",
        ] {
            session.run(statement).await.unwrap();
        }
        assert_eq!(found(&store).await, Vec::<String>::new());
        let names: HashMap<String, base::TableId> =
            engine.stored_names().await.unwrap().into_iter().map(|(id, name)| (name, id)).collect();
        delete_row(&store, names["public.p"], 0).await;
        let faults = found(&store).await;
        assert!(faults.len() == 1 && faults[0].starts_with("public.c: 1 rows that refer to a row"), "{faults:?}");
        session.run("insert into p values (1, 'a')").await.unwrap();
        delete_row(&store, names["public.c, index c_w"], 1).await;
        let faults = found(&store).await;
        assert!(
            faults.len() == 1 && faults[0].contains("index c_w: 1 of 3 rows have no entry, such as (w)=(6)"),
            "{faults:?}"
        );
        assert!(faults[0].ends_with("drop the index and create it again"), "{faults:?}");
        session.run("drop index c_w").await.unwrap();
        session.run("create index c_w on c (w)").await.unwrap();
        assert_eq!(found(&store).await, Vec::<String>::new());
        // A row that breaks a CHECK, and a NULL where none may be.
        let schema = store.definition(names["public.p"]).unwrap();
        let mut columns = schema.columns.clone();
        columns.iter_mut().for_each(|column| column.nullable = column.name != "id");
        let lax = storage::StoredSchema::new(schema.table, schema.version, columns, schema.key.clone());
        let lax = Arc::new(lax);
        let insert = async |id: i32, v: Option<&str>| {
            let columns: Vec<arrow::array::ArrayRef> = lax
                .arrow()
                .fields()
                .iter()
                .map(|field| match field.is_nullable() {
                    true => Arc::new(arrow::array::StringArray::from(vec![v])) as arrow::array::ArrayRef,
                    false => Arc::new(arrow::array::Int32Array::from(vec![id])),
                })
                .collect();
            let transaction = store.begin(BeginOptions::default()).await.unwrap();
            let row = RecordBatch::try_new(Arc::clone(lax.arrow()), columns).unwrap();
            transaction.insert(&lax, &row).await.unwrap();
            transaction.commit().await.unwrap();
        };
        insert(9, Some("x")).await;
        let faults = found(&store).await;
        let check = "public.p: 1 rows that break the constraint small, which demands p.id < 9";
        assert!(faults.len() == 1 && faults[0].starts_with(check), "{faults:?}");
        insert(10, None).await;
        let faults = found(&store).await;
        assert!(faults.len() == 1 && faults[0].starts_with("public.p: ") && faults[0].contains("NULL"), "{faults:?}");
        store.shutdown().await.unwrap();
    }
}

//! COPY between tables and files of the server: CSV, Parquet, JSON lines.
//!
//! # Invariants
//! - COPY-1 only administrators, only inside the configured folders, after every symbolic link is resolved, and never inside
//!   the data folder. Test: `copy_stays_in_its_folders`.

use std::fs::File;
use std::io::{BufReader, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use base::SqlState;
use futures::StreamExt;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tokio::sync::mpsc;

use crate::catalog::TableEntry;
use crate::dml::Written;
use crate::door::BatchStream;
use crate::parse::statement as st;
use crate::plan::{Binder, ClientForm, Overrides, Scope, authorize, fold, identifier, select, table_factor};
use crate::session::Produced;
use crate::{Error, Result};

/// Rows per batch read from a file.
const ROWS: usize = 8192;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Csv,
    Parquet,
    Json,
}

struct Options {
    format: Format,
    header: bool,
    delimiter: u8,
    quote: u8,
    escape: Option<u8>,
    null: String,
    compression: parquet::basic::Compression,
}

fn options(copy: &st::Copy, file: &str) -> Result<Options> {
    let by_name =
        match Path::new(file).extension().and_then(|extension| extension.to_str()).map(str::to_lowercase).as_deref() {
            Some("parquet") => Format::Parquet,
            Some("json" | "jsonl" | "ndjson") => Format::Json,
            _ => Format::Csv,
        };
    let mut found = Options {
        format: by_name,
        header: false,
        delimiter: b',',
        quote: b'"',
        escape: None,
        null: String::new(),
        compression: parquet::basic::Compression::SNAPPY,
    };
    for option in &copy.options {
        let text = option.value.as_ref().map(st::OptionValue::text);
        let value =
            || text.clone().ok_or_else(|| Error::syntax(format!("COPY option \"{}\" needs a value", option.name)));
        let byte = || -> Result<u8> {
            let text = value()?;
            match text.as_bytes() {
                [byte] => Ok(*byte),
                _ if text == "\\t" => Ok(b'\t'),
                _ => Err(Error::invalid(format!("COPY {} must be a single one-byte character", option.name))),
            }
        };
        match option.name.as_str() {
            "format" => {
                found.format = match value()?.to_lowercase().as_str() {
                    "csv" => Format::Csv,
                    "parquet" => Format::Parquet,
                    "json" | "jsonl" | "ndjson" => Format::Json,
                    other => return Err(Error::invalid(format!("COPY format \"{other}\" not recognized"))),
                }
            }
            "header" => {
                found.header = match &option.value {
                    Some(value) => value.switch().ok_or_else(|| Error::invalid("header requires a Boolean value"))?,
                    None => true,
                }
            }
            "delimiter" => found.delimiter = byte()?,
            "quote" => found.quote = byte()?,
            "escape" => found.escape = Some(byte()?),
            "null" => found.null = value()?,
            "encoding" => {
                let encoding = value()?;
                if !matches!(encoding.to_lowercase().as_str(), "utf8" | "utf-8") {
                    return Err(Error::unsupported(format!("encoding {encoding}")));
                }
            }
            "compression" => {
                found.compression = match value()?.to_lowercase().as_str() {
                    "none" | "uncompressed" => parquet::basic::Compression::UNCOMPRESSED,
                    "snappy" => parquet::basic::Compression::SNAPPY,
                    "zstd" => parquet::basic::Compression::ZSTD(parquet::basic::ZstdLevel::default()),
                    "lz4" => parquet::basic::Compression::LZ4_RAW,
                    other => return Err(Error::invalid(format!("COPY compression \"{other}\" not recognized"))),
                }
            }
            other => return Err(Error::unsupported(format!("COPY option \"{other}\""))),
        }
    }
    Ok(found)
}

/// The file, if the session may touch it.
fn allowed(scope: &Scope, file: &str, create: bool) -> Result<PathBuf> {
    if !scope.session.principal.is_admin() {
        return Err(Error::state(SqlState::INSUFFICIENT_PRIVILEGE, "permission denied to COPY to or from a file")
            .with_hint("only administrators may read and write files of the server; clients load with ingest"));
    }
    let path = Path::new(file);
    let refuse =
        |why: &str| Error::state(SqlState::INSUFFICIENT_PRIVILEGE, format!("COPY may not use \"{file}\": {why}"));
    if !path.is_absolute() {
        return Err(refuse("the path must be absolute"));
    }
    let real = if create && !path.exists() {
        let parent = path.parent().ok_or_else(|| refuse("it has no folder"))?;
        let name = path.file_name().ok_or_else(|| refuse("it is no file"))?;
        parent.canonicalize()?.join(name)
    } else {
        path.canonicalize()?
    };
    let options = &scope.engine().options;
    let inside = |folder: &Path| folder.canonicalize().is_ok_and(|folder| real.starts_with(folder));
    if !options.copy_folders.iter().any(|folder| inside(folder)) {
        return Err(refuse("it is outside the configured folders"));
    }
    if options.data_folder.as_deref().is_some_and(inside) {
        return Err(refuse("it is inside the data folder"));
    }
    Ok(real)
}

/// Runs a COPY.
pub(crate) async fn run(scope: &Scope, copy: &st::Copy) -> Result<Produced> {
    let st::CopyTarget::File(file) = &copy.target else {
        return Err(Error::unsupported("COPY over the connection").with_hint("load with ingest, read with a query"));
    };
    let options = options(copy, file)?;
    let rows = match copy.direction {
        st::CopyDirection::From => {
            let path = allowed(scope, file, false)?;
            from(scope, copy, path, options).await?
        }
        st::CopyDirection::To => {
            let path = allowed(scope, file, true)?;
            to(scope, copy, path, options).await?
        }
    };
    Ok(Produced::Written(Written { tag: "COPY", rows, returned: None }))
}

async fn from(scope: &Scope, copy: &st::Copy, path: PathBuf, options: Options) -> Result<u64> {
    scope.writing()?;
    let st::CopySource::Table { name, columns } = &copy.source else {
        return Err(Error::syntax("COPY FROM needs a table"));
    };
    let table = scope.table(name)?;
    let (schema, batches) = read(&table, columns, path, options)?;
    crate::ingest::load(scope, &table, &schema, batches).await
}

/// The columns a file without names holds.
fn target_schema(table: &TableEntry, columns: &[sqlparser::ast::Ident]) -> Result<Schema> {
    if columns.is_empty() {
        return Ok(table.arrow.as_ref().clone());
    }
    let fields = columns
        .iter()
        .map(|name| {
            let name = fold(name);
            table.arrow.field_with_name(&name).cloned().map_err(|_| {
                crate::error::undefined_column(&name, table.arrow.fields().iter().map(|field| field.name().as_str()))
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Schema::new(fields))
}

/// What text formats can be parsed as directly. The rest is read as an assignment reads texts; so are timestamps of a CSV file, where
/// a zone is ignored.
fn text_form(schema: &Schema, format: Format) -> SchemaRef {
    let fields: Vec<Field> = schema
        .fields()
        .iter()
        .map(|field| {
            let data_type = match field.data_type() {
                DataType::FixedSizeBinary(_) | DataType::List(_) | DataType::Interval(_) | DataType::Binary => {
                    DataType::Utf8
                }
                DataType::Timestamp(_, None) if format == Format::Csv => DataType::Utf8,
                other => other.clone(),
            };
            Field::new(field.name(), data_type, true)
        })
        .collect();
    Arc::new(Schema::new(fields))
}

fn damaged(path: &Path, error: impl std::fmt::Display) -> Error {
    Error::state(SqlState::BAD_COPY_FILE, format!("cannot read {}: {error}", path.display()))
}

fn read(
    table: &TableEntry,
    columns: &[sqlparser::ast::Ident],
    path: PathBuf,
    options: Options,
) -> Result<(SchemaRef, BatchStream)> {
    let (sender, receiver) = mpsc::channel::<Result<RecordBatch>>(4);
    let wanted = target_schema(table, columns)?;
    let file = File::open(&path)?;
    let schema = match options.format {
        Format::Parquet => {
            let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| damaged(&path, error))?;
            let mut schema = builder.schema().clone();
            if !columns.is_empty() {
                // The file's columns in order go to the columns named.
                if schema.fields().len() != wanted.fields().len() {
                    return Err(damaged(
                        &path,
                        format!("{} columns where {} are expected", schema.fields().len(), wanted.fields().len()),
                    ));
                }
                let fields: Vec<Field> = schema
                    .fields()
                    .iter()
                    .zip(wanted.fields())
                    .map(|(field, wanted)| field.as_ref().clone().with_name(wanted.name()))
                    .collect();
                schema = Arc::new(Schema::new(fields));
            }
            let reader = builder.with_batch_size(ROWS).build().map_err(|error| damaged(&path, error))?;
            let named = schema.clone();
            tokio::task::spawn_blocking(move || {
                for batch in reader {
                    let batch = batch
                        .and_then(|batch| RecordBatch::try_new(named.clone(), batch.columns().to_vec()))
                        .map_err(|error| damaged(&path, error));
                    if sender.blocking_send(batch).is_err() {
                        return;
                    }
                }
            });
            schema
        }
        Format::Csv => {
            let mut file = BufReader::with_capacity(1 << 20, file);
            let mut order: Schema = wanted.clone();
            if options.header && columns.is_empty() {
                // The header says which columns come in which order.
                let format = arrow::csv::reader::Format::default()
                    .with_header(true)
                    .with_delimiter(options.delimiter)
                    .with_quote(options.quote);
                let (inferred, _) = format.infer_schema(&mut file, Some(1)).map_err(|error| damaged(&path, error))?;
                file.rewind()?;
                let fields = inferred
                    .fields()
                    .iter()
                    .map(|field| {
                        let name = field.name().trim_start_matches('\u{feff}').trim();
                        wanted
                            .fields()
                            .iter()
                            .find(|known| known.name().eq_ignore_ascii_case(name))
                            .cloned()
                            .ok_or_else(|| {
                                crate::error::undefined_column(
                                    name,
                                    wanted.fields().iter().map(|field| field.name().as_str()),
                                )
                            })
                    })
                    .collect::<Result<Vec<_>>>()?;
                order = Schema::new(fields);
            }
            let schema = text_form(&order, Format::Csv);
            let mut builder = arrow::csv::ReaderBuilder::new(schema.clone())
                .with_header(options.header)
                .with_delimiter(options.delimiter)
                .with_quote(options.quote)
                .with_batch_size(ROWS);
            if let Some(escape) = options.escape {
                builder = builder.with_escape(escape);
            }
            let null = regex::Regex::new(&format!("^{}$", regex::escape(&options.null)))
                .map_err(|error| damaged(&path, error))?;
            let reader = builder.with_null_regex(null).build_buffered(file).map_err(|error| damaged(&path, error))?;
            tokio::task::spawn_blocking(move || {
                for batch in reader {
                    let batch = batch.map_err(|error| damaged(&path, error));
                    let stop = batch.is_err();
                    if sender.blocking_send(batch).is_err() || stop {
                        return;
                    }
                }
            });
            schema
        }
        Format::Json => {
            let schema = text_form(&wanted, Format::Json);
            let reader = arrow::json::ReaderBuilder::new(schema.clone())
                .with_batch_size(ROWS)
                .build(BufReader::with_capacity(1 << 20, file))
                .map_err(|error| damaged(&path, error))?;
            tokio::task::spawn_blocking(move || {
                for batch in reader {
                    let batch = batch.map_err(|error| damaged(&path, error));
                    let stop = batch.is_err();
                    if sender.blocking_send(batch).is_err() || stop {
                        return;
                    }
                }
            });
            schema
        }
    };
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|batch| (batch, receiver))
    });
    Ok((schema, stream.boxed()))
}

async fn to(scope: &Scope, copy: &st::Copy, path: PathBuf, options: Options) -> Result<u64> {
    let mut query = match &copy.source {
        st::CopySource::Query(query) => query.as_ref().clone(),
        st::CopySource::Table { name, columns } => {
            let items = if columns.is_empty() {
                vec![sqlparser::ast::SelectItem::Wildcard(sqlparser::ast::WildcardAdditionalOptions::default())]
            } else {
                columns
                    .iter()
                    .map(|name| {
                        sqlparser::ast::SelectItem::UnnamedExpr(sqlparser::ast::Expr::Identifier(identifier(&fold(
                            name,
                        ))))
                    })
                    .collect()
            };
            let from = sqlparser::ast::TableWithJoins { relation: table_factor(name.clone(), None), joins: Vec::new() };
            select(None, items, vec![from], None)
        }
    };
    let binder = Binder::for_query(scope, &mut query, Overrides::default(), false).await?;
    let plan = authorize(binder.query(query)?, &scope.session.principal)?;
    let (physical, mut stream) = plan.stream(scope.state()).await?;
    let form = ClientForm::of(&physical.schema());
    let schema = form.schema().clone();
    // Readers see the whole file or none.
    let temporary = path.with_extension("copying");
    let file = File::create(&temporary)?;
    let (sender, receiver) = mpsc::channel::<RecordBatch>(4);
    let target = temporary.clone();
    let writer = tokio::task::spawn_blocking(move || write(file, &target, &schema, &options, receiver));
    let mut rows = 0;
    let mut failed = None;
    while let Some(batch) = stream.next().await {
        match batch.and_then(|batch| form.batch(&batch)) {
            Ok(batch) => {
                rows += batch.num_rows() as u64;
                if sender.send(batch).await.is_err() {
                    break;
                }
            }
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    drop(sender);
    let written = writer.await.map_err(|error| Error::internal(format!("the file writer failed: {error}")))?;
    match failed.map_or(written, Err) {
        Ok(()) => {
            std::fs::rename(&temporary, &path)?;
            Ok(rows)
        }
        Err(error) => {
            // The half-written file is of no use; if it cannot be removed it stays under its temporary name.
            let _ = std::fs::remove_file(&temporary);
            Err(error)
        }
    }
}

/// Types that CSV and JSON writers print as SQL does.
fn printable(batch: &RecordBatch) -> Result<RecordBatch> {
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
        let array = match array.as_any().downcast_ref::<arrow::array::FixedSizeBinaryArray>() {
            Some(ids) if ids.value_length() == 16 => Arc::new(
                ids.iter()
                    .map(|id| id.and_then(|id| uuid::Uuid::from_slice(id).ok()).map(|id| id.to_string()))
                    .collect::<arrow::array::StringArray>(),
            ) as arrow::array::ArrayRef,
            _ => array.clone(),
        };
        fields.push(Field::new(field.name(), array.data_type().clone(), true));
        columns.push(array);
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

fn write(
    file: File,
    path: &Path,
    schema: &SchemaRef,
    options: &Options,
    mut batches: mpsc::Receiver<RecordBatch>,
) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| {
        Error::state(SqlState::IO_ERROR, format!("cannot write {}: {error}", path.display()))
    };
    match options.format {
        Format::Parquet => {
            let properties =
                parquet::file::properties::WriterProperties::builder().set_compression(options.compression).build();
            let mut writer =
                ArrowWriter::try_new(file, schema.clone(), Some(properties)).map_err(|error| failed(&error))?;
            while let Some(batch) = batches.blocking_recv() {
                writer.write(&batch).map_err(|error| failed(&error))?;
            }
            writer.finish().map_err(|error| failed(&error))?;
            writer.inner().sync_all()?;
        }
        Format::Csv => {
            let mut writer = arrow::csv::WriterBuilder::new()
                .with_header(options.header)
                .with_delimiter(options.delimiter)
                .with_quote(options.quote)
                .with_null(options.null.clone())
                .build(BufWriter::with_capacity(1 << 20, file));
            let mut any = false;
            while let Some(batch) = batches.blocking_recv() {
                any = true;
                writer.write(&printable(&batch)?).map_err(|error| failed(&error))?;
            }
            if !any {
                writer.write(&RecordBatch::new_empty(schema.clone())).map_err(|error| failed(&error))?;
            }
            let mut file = writer.into_inner();
            file.flush()?;
            file.get_ref().sync_all()?;
        }
        Format::Json => {
            let mut writer = arrow::json::LineDelimitedWriter::new(BufWriter::with_capacity(1 << 20, file));
            while let Some(batch) = batches.blocking_recv() {
                writer.write(&printable(&batch)?).map_err(|error| failed(&error))?;
            }
            writer.finish().map_err(|error| failed(&error))?;
            let mut file = writer.into_inner();
            file.flush()?;
            file.get_ref().sync_all()?;
        }
    }
    Ok(())
}

//! EXPLAIN: the plan of a statement, and with ANALYZE what happened when it ran.
//!
//! A statement that writes is explained by the SELECT that finds its rows. ANALYZE runs it as it would run by itself, except that it
//! takes no way without a plan, and keeps its writes, as in PostgreSQL.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::stats::Precision;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::display::DisplayableExecutionPlan;
use datafusion::physical_plan::{ExecutionPlan, displayable};
use futures::StreamExt;
use serde_json::{Map, Value, json};

use crate::parse::statement::{self as st, ExplainFormat, StatementAst};
use crate::plan::{Binder, Notes, Overrides, Scope, authorize};
use crate::session::Produced;
use crate::{Error, Result};

/// The column of EXPLAIN.
pub(crate) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("QUERY PLAN", DataType::Utf8, false)]))
}

/// What is above the plan of a statement that writes.
struct Above {
    operation: &'static str,
    table: String,
}

/// What is shown.
struct Shown {
    above: Option<Above>,
    /// With VERBOSE.
    logical: Option<String>,
    physical: Option<Arc<dyn ExecutionPlan>>,
    /// With ANALYZE.
    ran: Option<Ran>,
    verbose: bool,
}

struct Ran {
    rows: u64,
    took: Duration,
}

/// Runs an EXPLAIN.
pub(crate) async fn run(scope: &Scope, explain: &st::Explain) -> Result<Produced> {
    let above = above(&explain.inner.kind);
    let scope = &Scope { notes: Notes::watching(), ..scope.clone() };
    let mut shown = Shown { above, logical: None, physical: None, ran: None, verbose: explain.verbose };
    if explain.verbose {
        let optimized = scope.state().optimize(&plan(scope, &explain.inner.kind).await?)?;
        shown.logical = Some(optimized.display_indent().to_string());
    }
    if explain.analyze && shown.above.is_some() {
        let started = Instant::now();
        let written = match &explain.inner.kind {
            StatementAst::Insert(insert) => crate::dml::insert::run(scope, insert).await?,
            StatementAst::Update(update) => crate::dml::update::run(scope, update).await?,
            StatementAst::Delete(delete) => crate::dml::delete::run(scope, delete).await?,
            StatementAst::Merge(merge) => crate::dml::merge::run(scope, merge).await?,
            other => return Err(Error::unsupported(format!("EXPLAIN {}", other.name()))),
        };
        shown.ran = Some(Ran { rows: written.rows, took: started.elapsed() });
        shown.physical = scope.notes.watched();
    } else {
        let plan = authorize(plan(scope, &explain.inner.kind).await?, &scope.session.principal)?;
        shown.physical = Some(if explain.analyze {
            let started = Instant::now();
            let (physical, mut stream) = plan.stream(scope.state()).await?;
            let mut rows = 0;
            while let Some(batch) = stream.next().await {
                rows += batch?.num_rows() as u64;
            }
            shown.ran = Some(Ran { rows, took: started.elapsed() });
            physical
        } else {
            plan.physical(scope.state()).await?
        });
    }
    match explain.format {
        ExplainFormat::Json => {
            one(&serde_json::to_string_pretty(&shown.json()?).map_err(|error| Error::internal(error.to_string()))?)
        }
        format => lines(&shown.text(format)),
    }
}

fn above(kind: &StatementAst) -> Option<Above> {
    let (operation, table) = match kind {
        StatementAst::Insert(insert) => ("Insert", insert.table.to_string()),
        StatementAst::Update(update) => ("Update", update.table.to_string()),
        StatementAst::Delete(delete) => ("Delete", delete.table.to_string()),
        StatementAst::Merge(merge) => ("Merge", merge.table.to_string()),
        _ => return None,
    };
    Some(Above { operation, table })
}

/// The plan of a statement, or of the SELECT inside one that writes.
async fn plan(scope: &Scope, kind: &StatementAst) -> Result<LogicalPlan> {
    match kind {
        StatementAst::Query(query) => {
            let mut query = query.as_ref().clone();
            let binder = Binder::for_query(scope, &mut query, Overrides::default(), false).await?;
            binder.query(query)
        }
        StatementAst::Insert(insert) => crate::dml::insert::explain(scope, insert).await,
        StatementAst::Update(update) => crate::dml::update::explain(scope, update).await,
        StatementAst::Delete(delete) => crate::dml::delete::explain(scope, delete).await,
        StatementAst::Merge(merge) => crate::dml::merge::explain(scope, merge).await,
        other => Err(Error::unsupported(format!("EXPLAIN {}", other.name()))),
    }
}

impl Shown {
    fn text(&self, format: ExplainFormat) -> String {
        let mut text = String::new();
        if let Some(logical) = &self.logical {
            let _ = writeln!(text, "Logical plan:\n{logical}\nPhysical plan:");
        }
        let mut indent = "";
        if let Some(Above { operation, table }) = &self.above {
            let _ = writeln!(text, "{operation} on {table}");
            indent = "  ";
        }
        if let Some(physical) = &self.physical {
            let plan = match (format, &self.ran) {
                (ExplainFormat::Tree, _) => displayable(physical.as_ref()).tree_render().to_string(),
                (ExplainFormat::Graphviz, _) => displayable(physical.as_ref()).graphviz().to_string(),
                (_, Some(_)) => {
                    DisplayableExecutionPlan::with_metrics(physical.as_ref()).indent(self.verbose).to_string()
                }
                (_, None) => displayable(physical.as_ref()).indent(self.verbose).to_string(),
            };
            for line in plan.lines() {
                let _ = writeln!(text, "{indent}{line}");
            }
        }
        if let Some(Ran { rows, took }) = &self.ran {
            let what = if self.above.is_some() { "Rows Written" } else { "Rows" };
            let _ = writeln!(text, "{what}: {rows}\nExecution Time: {:.3} ms", milliseconds(*took));
        }
        text
    }

    fn json(&self) -> Result<Value> {
        let analyzed = self.ran.is_some();
        let plan = self.physical.as_ref().map(|physical| node(physical.as_ref(), analyzed)).transpose()?;
        let plan = match &self.above {
            Some(Above { operation, table }) => {
                let mut top = Map::new();
                top.insert("Node Type".to_owned(), json!("ModifyTable"));
                top.insert("Operation".to_owned(), json!(operation));
                top.insert("Relation Name".to_owned(), json!(table));
                if let Some(ran) = &self.ran {
                    top.insert("Rows Written".to_owned(), json!(ran.rows));
                }
                top.insert("Plans".to_owned(), json!(plan.into_iter().collect::<Vec<_>>()));
                Value::Object(top)
            }
            None => plan.unwrap_or_default(),
        };
        let mut whole = Map::new();
        whole.insert("Plan".to_owned(), plan);
        if let Some(logical) = &self.logical {
            whole.insert("Logical Plan".to_owned(), json!(logical.lines().collect::<Vec<_>>()));
        }
        if let Some(ran) = &self.ran {
            if self.above.is_none() {
                whole.insert("Rows".to_owned(), json!(ran.rows));
            }
            whole.insert("Execution Time".to_owned(), json!(milliseconds(ran.took)));
        }
        Ok(Value::Array(vec![Value::Object(whole)]))
    }
}

/// To microseconds.
fn milliseconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

/// An operator in the shape of PostgreSQL's plans.
fn node(plan: &dyn ExecutionPlan, analyzed: bool) -> Result<Value> {
    let mut node = Map::new();
    node.insert("Node Type".to_owned(), json!(plan.name().trim_end_matches("Exec")));
    node.insert("Description".to_owned(), json!(displayable(plan).one_line().to_string().trim()));
    if let Precision::Exact(rows) | Precision::Inexact(rows) = plan.partition_statistics(None)?.num_rows {
        node.insert("Plan Rows".to_owned(), json!(rows));
    }
    if let (true, Some(metrics)) = (analyzed, plan.metrics()) {
        let metrics = metrics.aggregate_by_name().timestamps_removed();
        if let Some(rows) = metrics.output_rows() {
            node.insert("Actual Rows".to_owned(), json!(rows));
        }
        if let Some(nanoseconds) = metrics.elapsed_compute() {
            let took = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
            node.insert("Actual Total Time".to_owned(), json!(milliseconds(took)));
        }
        let others: Map<String, Value> = metrics
            .iter()
            .map(|metric| (metric.value().name().to_owned(), json!(metric.value().to_string())))
            .collect();
        if !others.is_empty() {
            node.insert("Metrics".to_owned(), Value::Object(others));
        }
    }
    let below =
        plan.children().into_iter().map(|child| self::node(child.as_ref(), analyzed)).collect::<Result<Vec<_>>>()?;
    if !below.is_empty() {
        node.insert("Plans".to_owned(), Value::Array(below));
    }
    Ok(Value::Object(node))
}

fn lines(text: &str) -> Result<Produced> {
    rows(text.lines().map(Some).collect())
}

/// A document is one value.
fn one(text: &str) -> Result<Produced> {
    rows(std::iter::once(Some(text)).collect())
}

fn rows(array: StringArray) -> Result<Produced> {
    let schema = schema();
    Ok(Produced::batches(schema.clone(), vec![RecordBatch::try_new(schema, vec![Arc::new(array)])?]))
}

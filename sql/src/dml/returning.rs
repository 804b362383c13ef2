//! RETURNING: a SELECT over the rows that a statement wrote, beside the columns of the relations it joined them to.
//!
//! The statement's own SELECT carries the other relations' columns behind what the write loop needs ([`Returning::items`]). Every
//! written row is kept with them ([`Returning::keep`]), and when the statement is done, RETURNING runs over the kept rows, where each
//! column has the name and the qualifier it had in the statement. It is planned before the first write, so that a subquery in it reads
//! tables as the statement found them.

use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, DFSchema, TableReference};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, TableScan, TableSource};
use futures::StreamExt;
use sqlparser::ast;

use super::Target;
use crate::plan::{Binder, ClientForm, ROWS, Scope, authorize, client_schema, fold, identifier, select, table_factor};
use crate::session::learn;
use crate::{Error, Result};

/// RETURNING of one statement.
pub(super) struct Returning<'a> {
    items: &'a [ast::SelectItem],
    target: &'a Target,
    /// The other relations' columns, once the statement is planned, and where they begin in its batches.
    others: Vec<(Option<TableReference>, FieldRef)>,
    first_other: usize,
    /// MERGE: `*` names the source first, and `merge_action()` says what was done.
    merge: bool,
    /// Planned before the first write, so that it reads tables as the statement found them.
    plan: Option<LogicalPlan>,
    kept: Vec<RecordBatch>,
}

impl<'a> Returning<'a> {
    pub(super) fn new(items: &'a [ast::SelectItem], target: &'a Target) -> Self {
        Self { items, target, others: Vec::new(), first_other: 0, merge: false, plan: None, kept: Vec::new() }
    }

    /// For MERGE.
    pub(super) fn of_merge(self) -> Self {
        Self { merge: true, ..self }
    }

    pub(super) fn wanted(&self) -> bool {
        !self.items.is_empty()
    }

    /// What the statement's SELECT must carry: all columns of the other relations, unless RETURNING names the target alone.
    pub(super) fn other_items(&self, from: &[ast::TableWithJoins]) -> Result<Vec<ast::SelectItem>> {
        if !self.wanted() || from.is_empty() || self.names_target_alone() {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for from in from {
            relations(from, &mut names)?;
        }
        Ok(names.iter().map(every_column).collect())
    }

    fn names_target_alone(&self) -> bool {
        let target = &self.target.alias.value;
        self.items.iter().all(|item| match item {
            ast::SelectItem::UnnamedExpr(expr) | ast::SelectItem::ExprWithAlias { expr, .. } => {
                ast::visit_expressions(expr, |expr| match expr {
                    ast::Expr::CompoundIdentifier(parts) if parts.first().map(fold).as_ref() == Some(target) => {
                        ControlFlow::Continue(())
                    }
                    ast::Expr::Identifier(_) | ast::Expr::CompoundIdentifier(_) => ControlFlow::Break(()),
                    _ => ControlFlow::Continue(()),
                })
                .is_continue()
            }
            _ => false,
        })
    }

    /// Notes the columns of the statement's plan that belong to other relations: those from `first` on.
    pub(super) fn beside(&mut self, schema: &DFSchema, first: usize) {
        self.first_other = first;
        self.others = schema.iter().skip(first).map(|(qualifier, field)| (qualifier.cloned(), field.clone())).collect();
    }

    /// The other relations' columns of a batch of the statement's plan.
    pub(super) fn others_of(&self, batch: &RecordBatch) -> Vec<ArrayRef> {
        (0..self.others.len()).map(|at| batch.column(self.first_other + at).clone()).collect()
    }

    /// Keeps written rows: all stored columns, and the other relations' beside them.
    pub(super) fn keep(&mut self, stored: &[ArrayRef], others: Vec<ArrayRef>) -> Result<()> {
        if self.wanted() && stored.first().is_some_and(|array| !array.is_empty()) {
            let columns = self.target.table.visible.iter().map(|&at| stored[at].clone()).chain(others).collect();
            self.kept.push(RecordBatch::try_new(self.row_schema(), columns)?);
        }
        Ok(())
    }

    /// Keeps rows of MERGE with what was done to them.
    pub(super) fn keep_action(&mut self, stored: &[ArrayRef], mut others: Vec<ArrayRef>, action: &str) -> Result<()> {
        let rows = stored.first().map_or(0, |array| array.len());
        others.push(Arc::new(StringArray::from(vec![action; rows])));
        self.keep(stored, others)
    }

    /// The kept rows under names of their own: the target's visible columns, then the others, then what MERGE did.
    fn row_schema(&self) -> SchemaRef {
        let own = self.target.table.arrow.fields().iter().map(|field| field.as_ref().clone());
        let others = self.others.iter().map(|(_, field)| field.as_ref().clone().with_nullable(true));
        let action = self.merge.then(|| Field::new(ACTION, DataType::Utf8, false));
        Arc::new(Schema::new(
            own.chain(others)
                .chain(action)
                .enumerate()
                .map(|(at, field)| field.with_name(format!("c{at}")))
                .collect::<Vec<Field>>(),
        ))
    }

    fn source(&self, rows: Vec<RecordBatch>) -> Result<Arc<dyn TableSource>> {
        Ok(provider_as_source(Arc::new(MemTable::try_new(self.row_schema(), vec![rows])?)))
    }

    /// The rows as a relation whose columns are named as in the statement.
    fn relation(&self) -> Result<LogicalPlan> {
        let plan = LogicalPlanBuilder::scan(ROWS, self.source(Vec::new())?, None)?;
        let columns: Vec<Column> = plan.schema().columns();
        let target = TableReference::bare(self.target.alias.value.as_str());
        let width = self.target.table.arrow.fields().len();
        let own =
            self.target.table.arrow.fields().iter().zip(&columns).map(|(field, column)| {
                Expr::Column(column.clone()).alias_qualified(Some(target.clone()), field.name())
            });
        let others = self.others.iter().zip(&columns[width..]).map(|((qualifier, field), column)| {
            Expr::Column(column.clone()).alias_qualified(qualifier.clone(), field.name())
        });
        let mut items: Vec<Expr> = own.chain(others).collect();
        if let (true, Some(action)) = (self.merge, columns.last()) {
            items.push(Expr::Column(action.clone()).alias(ACTION));
        }
        Ok(plan.project(items)?.build()?)
    }

    /// Plans it. To be called before the statement writes.
    pub(super) async fn plan(&mut self, scope: &Scope) -> Result<()> {
        if self.wanted() {
            self.plan = Some(self.over_no_rows(scope).await?);
        }
        Ok(())
    }

    /// RETURNING as a plan, still without rows.
    async fn over_no_rows(&self, scope: &Scope) -> Result<LogicalPlan> {
        let factor = table_factor(ast::ObjectName::from(vec![identifier(ROWS)]), None);
        let from = ast::TableWithJoins { relation: factor, joins: Vec::new() };
        let items = if self.merge { self.items_of_merge() } else { self.items.to_vec() };
        let mut query = select(None, items, vec![from], None);
        Binder::for_rows(scope, &mut query, self.relation()?).await?.query(query)
    }

    /// The items with `*` written out, and with the column behind `merge_action()`.
    fn items_of_merge(&self) -> Vec<ast::SelectItem> {
        let mut items = Vec::with_capacity(self.items.len());
        for item in self.items {
            match item {
                ast::SelectItem::Wildcard(_) => {
                    let mut names: Vec<&str> =
                        self.others.iter().filter_map(|(name, _)| name.as_ref().map(TableReference::table)).collect();
                    names.dedup();
                    items.extend(names.into_iter().map(|name| every_column(&identifier(name))));
                    items.push(every_column(&self.target.alias));
                }
                ast::SelectItem::UnnamedExpr(expr) if is_action(expr) => {
                    let expr = ast::Expr::Identifier(identifier(ACTION));
                    items.push(ast::SelectItem::ExprWithAlias { expr, alias: identifier("merge_action") });
                }
                item => {
                    let mut item = item.clone();
                    if let ast::SelectItem::UnnamedExpr(expr) | ast::SelectItem::ExprWithAlias { expr, .. } = &mut item
                    {
                        let _ = ast::visit_expressions_mut(expr, |expr| {
                            if is_action(expr) {
                                *expr = ast::Expr::Identifier(identifier(ACTION));
                            }
                            ControlFlow::<()>::Continue(())
                        });
                    }
                    items.push(item);
                }
            }
        }
        items
    }

    /// The schema, and parameter types into `known`.
    pub(super) async fn types(&self, scope: &Scope, known: &mut [Option<FieldRef>]) -> Result<Option<SchemaRef>> {
        if !self.wanted() {
            return Ok(None);
        }
        let plan = self.over_no_rows(scope).await?;
        learn(&plan, known)?;
        let plan = scope.state().optimize(&plan)?;
        Ok(Some(client_schema(plan.schema().as_arrow())))
    }

    /// The rows that were kept.
    pub(super) async fn rows(&mut self, scope: &Scope) -> Result<Option<(SchemaRef, Vec<RecordBatch>)>> {
        let Some(plan) = self.plan.take() else { return Ok(None) };
        let kept = std::mem::take(&mut self.kept);
        let source = self.source(kept)?;
        let plan = plan.transform_up_with_subqueries(|node| match node {
            LogicalPlan::TableScan(scan) if scan.table_name == TableReference::bare(ROWS) => {
                Ok(Transformed::yes(LogicalPlan::TableScan(TableScan { source: source.clone(), ..scan })))
            }
            other => Ok(Transformed::no(other)),
        })?;
        let plan = authorize(plan.data, &scope.session.principal)?;
        let (physical, mut stream) = plan.stream(scope.state()).await?;
        let form = ClientForm::of(&physical.schema());
        let mut batches = Vec::new();
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            if batch.num_rows() > 0 {
                batches.push(form.batch(&batch)?);
            }
        }
        Ok(Some((form.schema().clone(), batches)))
    }
}

/// The column of what MERGE did.
const ACTION: &str = "__merge_action";

/// Whether an expression is `merge_action()`.
fn is_action(expr: &ast::Expr) -> bool {
    let ast::Expr::Function(function) = expr else { return false };
    let named = matches!(function.name.0.as_slice(), [part] if part.as_ident().is_some_and(|name| fold(name) == "merge_action"));
    named && matches!(&function.args, ast::FunctionArguments::List(list) if list.args.is_empty())
}

fn every_column(name: &ast::Ident) -> ast::SelectItem {
    ast::SelectItem::QualifiedWildcard(
        ast::SelectItemQualifiedWildcardKind::ObjectName(ast::ObjectName::from(vec![name.clone()])),
        ast::WildcardAdditionalOptions::default(),
    )
}

/// The names of the relations of an item of FROM.
fn relations(from: &ast::TableWithJoins, names: &mut Vec<ast::Ident>) -> Result<()> {
    for factor in std::iter::once(&from.relation).chain(from.joins.iter().map(|join| &join.relation)) {
        let name = match factor {
            ast::TableFactor::NestedJoin { table_with_joins, alias: None } => {
                relations(table_with_joins, names)?;
                continue;
            }
            ast::TableFactor::Table { name, alias, .. } => {
                alias.as_ref().map(|alias| &alias.name).or_else(|| name.0.last().and_then(|part| part.as_ident()))
            }
            ast::TableFactor::Derived { alias, .. }
            | ast::TableFactor::Function { alias, .. }
            | ast::TableFactor::UNNEST { alias, .. }
            | ast::TableFactor::NestedJoin { alias, .. } => alias.as_ref().map(|alias| &alias.name),
            _ => None,
        };
        match name {
            Some(name) => names.push(identifier(&fold(name))),
            None => {
                return Err(
                    Error::unsupported("RETURNING beside a relation without a name").with_hint("give it an alias")
                );
            }
        }
    }
    Ok(())
}

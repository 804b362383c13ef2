//! Foreign keys, from both sides, settled when a statement ends.
//!
//! The referring side locks what it refers to (shared) and looks whether it is there; the referred side locks what it removes
//! (exclusive) and looks who refers to it, in its own view *and* in the newest snapshot, because a child may have been
//! committed since its own snapshot was taken.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BinaryArray, RecordBatch, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{Field, Schema};
use base::{ErrorKind, RowKey, SqlState, TableId};
use codec::{KeyCodec, StoredSchema};
use datafusion::datasource::MemTable;
use futures::StreamExt;
use sqlparser::ast;

use super::constraints::show_key;
use super::writer::TableWriter;
use super::{Target, locators, plan, run_plan};
use crate::catalog::{Action, ForeignKey, TableEntry, UniqueKey};
use crate::plan::{Overrides, Scope, identifier, qualified, select, table_factor};
use crate::transaction::{Reader, Txn};
use crate::{Error, Result};

/// How many keys are looked up at once.
const CHUNK: usize = 4096;

/// Where the referred rows are found by their key.
#[derive(Clone, Debug)]
struct Place {
    /// The table itself, or the hidden table of a unique index.
    schema: Arc<StoredSchema>,
    /// For each key column of the place, which column of the foreign key it is; `None` for the discriminator.
    order: Vec<Option<usize>>,
}

impl Place {
    fn of(parent: &TableEntry, referred: &[u32]) -> Result<Self> {
        let find = |id: u32| referred.iter().position(|&other| other == id);
        match parent.unique_over(referred) {
            Some(UniqueKey::Primary(key)) => {
                Ok(Self { schema: parent.stored.clone(), order: key.columns.iter().map(|&id| find(id)).collect() })
            }
            Some(UniqueKey::Index(index)) => {
                let mut order: Vec<Option<usize>> = index.def.columns.iter().map(|&id| find(id)).collect();
                order.push(None);
                Ok(Self { schema: index.stored.clone(), order })
            }
            None => Err(Error::state(
                SqlState::INVALID_FOREIGN_KEY,
                format!(
                    "there is no unique constraint matching given keys for referenced table \"{}\"",
                    parent.def.name
                ),
            )),
        }
    }

    /// Keys of the place for the columns of the foreign key.
    fn keys(&self, columns: &[ArrayRef]) -> Result<Vec<RowKey>> {
        let rows = columns.first().map_or(0, |array| array.len());
        let arrays: Vec<ArrayRef> = self
            .order
            .iter()
            .zip(&self.schema.key)
            .map(|(from, &at)| match from {
                Some(from) => {
                    let wanted = &self.schema.columns[at].data_type;
                    let array = &columns[*from];
                    if array.data_type() == wanted {
                        Ok(array.clone())
                    } else {
                        Ok(arrow::compute::cast(array, wanted)?)
                    }
                }
                None => Ok(Arc::new((0..rows).map(|_| Some(&[] as &[u8])).collect::<BinaryArray>()) as ArrayRef),
            })
            .collect::<Result<_>>()?;
        KeyCodec::new(&self.schema).and_then(|codec| codec.keys_of_columns(&arrays)).map_err(Error::classified)
    }
}

/// Rows without NULL in any of some columns.
fn complete(columns: &[ArrayRef]) -> Vec<usize> {
    let rows = columns.first().map_or(0, |array| array.len());
    (0..rows).filter(|&row| columns.iter().all(|array| array.is_valid(row))).collect()
}

/// New references of one foreign key.
pub(super) struct Referencing {
    key: ForeignKey,
    parent: Arc<TableEntry>,
    place: Place,
    /// Storage positions of the referring columns.
    pub(super) positions: Vec<usize>,
    /// Each key once, with how a message shows it.
    wanted: BTreeMap<RowKey, String>,
}

impl Referencing {
    pub(super) fn new(scope: &Scope, table: &TableEntry, at: usize) -> Result<Self> {
        let key = table.def.foreign_keys[at].clone();
        let parent = scope.catalog.table_by_id(key.table)?.clone();
        let positions = key.columns.iter().filter_map(|&id| table.def.position_of(id)).collect();
        let place = Place::of(&parent, &key.referred)?;
        Ok(Self { key, parent, place, positions, wanted: BTreeMap::new() })
    }

    /// Notes what rows refer to.
    pub(super) fn note(&mut self, columns: &[ArrayRef]) -> Result<()> {
        let columns: Vec<ArrayRef> = self.positions.iter().map(|&at| columns[at].clone()).collect();
        let rows = complete(&columns);
        if rows.is_empty() {
            return Ok(());
        }
        let keys = self.place.keys(&columns)?;
        let arrays: Vec<&ArrayRef> = columns.iter().collect();
        for row in rows {
            self.wanted.entry(keys[row].clone()).or_insert_with(|| show_key(&[], &arrays, row));
        }
        Ok(())
    }

    pub(super) async fn settle(self, scope: &Scope, txn: &Arc<Txn>, table: &TableEntry) -> Result<()> {
        let keys: Vec<RowKey> = self.wanted.keys().cloned().collect();
        let patience = scope.session.lock_patience();
        for chunk in keys.chunks(CHUNK) {
            txn.locks.lock(TableId(self.parent.def.id), chunk, false, patience).await?;
            let mine = txn.storage.view(&self.place.schema).map_err(Error::classified)?;
            let found = mine.find(chunk).await.map_err(Error::classified)?;
            if let Some((missing, _)) = chunk.iter().zip(&found).find(|(_, found)| found.is_none()) {
                return Err(self.violated(table, missing));
            }
            // A parent that a committed transaction removed since the snapshot is gone all the same.
            let store = &scope.engine().store;
            let newest = store.snapshot();
            if newest.ts() == txn.storage.snapshot_ts() {
                continue;
            }
            let now = match newest.table(&self.place.schema) {
                Ok(view) => view.find(chunk).await.map_err(Error::classified)?,
                Err(storage::Error::UnknownTable(_)) => continue,
                Err(error) => return Err(Error::classified(error)),
            };
            let doubtful: Vec<RowKey> =
                chunk.iter().zip(&now).filter(|(_, now)| now.is_none()).map(|(key, _)| key.clone()).collect();
            if doubtful.is_empty() {
                continue;
            }
            // Not there now: either this transaction made it, or somebody removed it.
            let before = store.snapshot_at(txn.storage.snapshot_ts()).await.map_err(Error::classified)?;
            if let Ok(view) = before.table(&self.place.schema) {
                if view.find(&doubtful).await.map_err(Error::classified)?.iter().any(Option::is_some) {
                    return Err(Error::new(
                        ErrorKind::Conflict,
                        "could not serialize access due to concurrent delete of a referenced row",
                    ));
                }
            }
        }
        Ok(())
    }

    fn violated(&self, table: &TableEntry, key: &RowKey) -> Error {
        let names: Vec<&str> = self.key.columns.iter().map(|&id| table.def.column_name(id)).collect();
        let shown = self.wanted.get(key).map_or("", |shown| shown.trim_start_matches("()"));
        Error::state(
            SqlState::FOREIGN_KEY_VIOLATION,
            format!(
                "insert or update on table \"{}\" violates foreign key constraint \"{}\"",
                table.def.name, self.key.name
            ),
        )
        .with_detail(format!(
            "Key ({}){shown} is not present in table \"{}\".",
            names.join(", "),
            self.parent.def.name
        ))
    }
}

/// Referred keys that are going, for one foreign key of another (or the same) table.
pub(super) struct Referenced {
    key: ForeignKey,
    child: Arc<TableEntry>,
    place: Place,
    /// Storage positions of the referred columns.
    pub(super) positions: Vec<usize>,
    /// Old values and, for updates, new values.
    gone: Vec<(Vec<ArrayRef>, Option<Vec<ArrayRef>>)>,
}

impl Referenced {
    pub(super) fn new(scope: &Scope, table: &TableEntry, child: u32, at: usize) -> Result<Self> {
        let child = scope.catalog.table_by_id(child)?.clone();
        let key = child.def.foreign_keys[at].clone();
        let positions = key.referred.iter().filter_map(|&id| table.def.position_of(id)).collect();
        let place = Place::of(table, &key.referred)?;
        Ok(Self { key, child, place, positions, gone: Vec::new() })
    }

    /// Notes rows that go (`new` absent) or change their referred columns.
    pub(super) fn note(&mut self, old: &[ArrayRef], new: Option<&[ArrayRef]>) -> Result<()> {
        let before: Vec<ArrayRef> = self.positions.iter().map(|&at| old[at].clone()).collect();
        let after: Option<Vec<ArrayRef>> = new.map(|new| self.positions.iter().map(|&at| new[at].clone()).collect());
        let mut rows = complete(&before);
        if let Some(after) = &after {
            let (old_keys, new_keys) = (self.place.keys(&before)?, self.place.keys(after)?);
            rows.retain(|&row| old_keys[row] != new_keys[row]);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let rows = UInt32Array::from_iter_values(rows.into_iter().map(|row| u32::try_from(row).unwrap_or(u32::MAX)));
        let pick = |columns: &[ArrayRef]| {
            columns.iter().map(|column| Ok(take(column, &rows, None)?)).collect::<Result<Vec<_>>>()
        };
        let after = after.as_deref().map(pick).transpose()?;
        self.gone.push((pick(&before)?, after));
        Ok(())
    }

    pub(super) async fn settle(self, scope: &Scope, txn: &Arc<Txn>, table: &TableEntry) -> Result<()> {
        for (before, after) in &self.gone {
            let keys = self.place.keys(before)?;
            txn.locks.lock(TableId(table.def.id), &keys, true, scope.session.lock_patience()).await?;
            // A key that is there again (moved by the same statement, or inserted anew) is missed by nobody.
            let view = txn.storage.view(&self.place.schema).map_err(Error::classified)?;
            let found = view.find(&keys).await.map_err(Error::classified)?;
            let missing = UInt32Array::from_iter_values(
                found
                    .iter()
                    .enumerate()
                    .filter(|(_, found)| found.is_none())
                    .map(|(row, _)| u32::try_from(row).unwrap_or(u32::MAX)),
            );
            if missing.is_empty() {
                continue;
            }
            let pick = |columns: &[ArrayRef]| {
                columns.iter().map(|column| Ok(take(column, &missing, None)?)).collect::<Result<Vec<_>>>()
            };
            let before = pick(before)?;
            let after = after.as_deref().map(pick).transpose()?;
            let action = if after.is_some() { self.key.on_update } else { self.key.on_delete };
            self.unseen_children(scope, txn, table, &before).await?;
            match action {
                Action::NoAction | Action::Restrict => self.refuse(scope, txn, table, &before).await?,
                Action::Cascade | Action::SetNull | Action::SetDefault => {
                    self.follow(scope, txn, &before, after.as_deref(), action).await?
                }
            }
        }
        Ok(())
    }

    /// The child's rows that refer to some keys: `SELECT items FROM child JOIN gone ON …`.
    async fn children(
        &self,
        scope: &Scope,
        target: &Target,
        items: Vec<ast::SelectItem>,
        gone: RecordBatch,
    ) -> Result<crate::door::BatchStream> {
        let names: Vec<&str> = self.key.columns.iter().map(|&id| self.child.def.column_name(id)).collect();
        let gone_name = identifier("__gone");
        let few = gone.num_rows() <= 256 && names.len() == 1;
        let literals = if few {
            (0..gone.num_rows()).map(|row| crate::plan::scalar_of(gone.column(0), row)).collect::<Result<Vec<_>>>()?
        } else {
            Vec::new()
        };
        let table = MemTable::try_new(gone.schema(), vec![vec![gone]])?;
        let overrides = Overrides::from([("__gone".to_owned(), Arc::new(table) as Arc<_>)]);
        let condition = names
            .iter()
            .enumerate()
            .map(|(at, name)| ast::Expr::BinaryOp {
                left: Box::new(qualified(&target.alias, name)),
                op: ast::BinaryOperator::Eq,
                right: Box::new(qualified(&gone_name, &format!("b{at}"))),
            })
            .reduce(|left, right| ast::Expr::BinaryOp {
                left: Box::new(left),
                op: ast::BinaryOperator::And,
                right: Box::new(right),
            });
        let other = ast::TableWithJoins {
            relation: table_factor(ast::ObjectName::from(vec![gone_name]), None),
            joins: Vec::new(),
        };
        let query = select(None, items, vec![target.from(), other], condition);
        let mut planned = plan(scope, query, overrides).await?;
        if few {
            // The same as a list of literals, so that the scan can use an index or the key.
            planned = narrow(planned, names[0], &self.child.def.name, literals)?;
        }
        run_plan(scope, planned).await
    }

    fn gone_batch(before: &[ArrayRef], after: Option<&[ArrayRef]>) -> Result<RecordBatch> {
        let mut fields = Vec::new();
        let mut columns = Vec::new();
        for (prefix, arrays) in [("b", Some(before)), ("a", after)] {
            for (at, array) in arrays.unwrap_or_default().iter().enumerate() {
                fields.push(Field::new(format!("{prefix}{at}"), array.data_type().clone(), true));
                columns.push(array.clone());
            }
        }
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }

    fn target(&self, scope: &Scope) -> Target {
        let schema = scope.catalog.schema_name(self.child.def.schema);
        Target {
            table: self.child.clone(),
            name: ast::ObjectName::from(vec![identifier(schema), identifier(&self.child.def.name)]),
            alias: identifier("__child"),
        }
    }

    async fn refuse(&self, scope: &Scope, txn: &Arc<Txn>, table: &TableEntry, before: &[ArrayRef]) -> Result<()> {
        let scope = Scope { reader: Reader::Transaction(txn.clone()), ..scope.clone() };
        self.refuse_in(&scope, table, before).await
    }

    async fn refuse_in(&self, scope: &Scope, table: &TableEntry, before: &[ArrayRef]) -> Result<()> {
        let target = self.target(scope);
        let gone = identifier("__gone");
        let items = (0..before.len())
            .map(|at| crate::plan::item(qualified(&gone, &format!("b{at}")), &format!("b{at}")))
            .collect();
        let mut found = self.children(scope, &target, items, Self::gone_batch(before, None)?).await?;
        while let Some(batch) = found.next().await {
            let batch = batch?;
            if batch.num_rows() > 0 {
                return Err(self.still_referenced(table, &batch));
            }
        }
        Ok(())
    }

    fn still_referenced(&self, table: &TableEntry, batch: &RecordBatch) -> Error {
        let names: Vec<&str> = self.key.referred.iter().map(|&id| table.def.column_name(id)).collect();
        let key = show_key(&names, &batch.columns().iter().collect::<Vec<_>>(), 0);
        Error::state(
            SqlState::FOREIGN_KEY_VIOLATION,
            format!(
                "update or delete on table \"{}\" violates foreign key constraint \"{}\" on table \"{}\"",
                table.def.name, self.key.name, self.child.def.name
            ),
        )
        .with_detail(format!("Key {key} is still referenced from table \"{}\".", self.child.def.name))
    }

    /// Children committed after the own snapshot cannot be followed by this transaction: it must be tried again.
    async fn unseen_children(
        &self,
        scope: &Scope,
        txn: &Arc<Txn>,
        table: &TableEntry,
        before: &[ArrayRef],
    ) -> Result<()> {
        let snapshot = scope.engine().store.snapshot();
        if snapshot.ts() == txn.storage.snapshot_ts() || snapshot.table(&self.child.stored).is_err() {
            return Ok(());
        }
        let target = self.target(scope);
        let newest = Scope { reader: Reader::Snapshot(snapshot), ..scope.clone() };
        let mut items = target.row_items(&[]);
        items.truncate(0);
        items.push(crate::plan::item(qualified(&target.alias, "_tx_from"), "t"));
        let mut found = self.children(&newest, &target, items, Self::gone_batch(before, None)?).await?;
        let limit = txn.storage.snapshot_ts().0;
        while let Some(batch) = found.next().await {
            let batch = batch?;
            let times = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Int64)?;
            let times = times
                .as_any()
                .downcast_ref::<arrow::array::Int64Array>()
                .ok_or_else(|| Error::internal("times are numbers"))?;
            if times.iter().flatten().any(|time| time > limit) {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!(
                        "could not serialize access: a row of \"{}\" began to refer to a row of \"{}\"",
                        self.child.def.name, table.def.name
                    ),
                ));
            }
        }
        Ok(())
    }

    /// CASCADE, SET NULL, SET DEFAULT.
    async fn follow(
        &self,
        scope: &Scope,
        txn: &Arc<Txn>,
        before: &[ArrayRef],
        after: Option<&[ArrayRef]>,
        action: Action,
    ) -> Result<()> {
        let scope = Scope { reader: Reader::Transaction(txn.clone()), ..scope.clone() };
        let target = self.target(&scope);
        let positions = target.all_positions();
        let mut items = target.row_items(&positions);
        let gone = identifier("__gone");
        if after.is_some() {
            items.extend(
                (0..before.len()).map(|at| crate::plan::item(qualified(&gone, &format!("a{at}")), &format!("a{at}"))),
            );
        }
        let mut found = self.children(&scope, &target, items, Self::gone_batch(before, after)?).await?;
        let mut writer = TableWriter::new(&scope, &self.child, true).await?;
        let mut met = super::writer::Met::default();
        let set: Vec<usize> = self.key.columns.iter().filter_map(|&id| self.child.def.position_of(id)).collect();
        while let Some(batch) = found.next().await {
            let batch = batch?;
            let old = spread(&self.child, &positions, &batch);
            let keys = writer.keys(&old)?;
            let fresh = met.fresh(&keys);
            if fresh.is_empty() {
                continue;
            }
            let at: Vec<_> = locators(&batch, positions.len())?;
            let at: Vec<_> = fresh.iter().map(|&row| at[row]).collect();
            let old = super::writer::pick(&old, &fresh)?;
            if action == Action::Cascade && after.is_none() {
                writer.delete(&old, &at).await?;
                continue;
            }
            let mut new = old.clone();
            for (number, &position) in set.iter().enumerate() {
                new[position] = match action {
                    Action::Cascade => {
                        let column = batch.column(positions.len() + 2 + number);
                        let picked = super::writer::pick(std::slice::from_ref(column), &fresh)?.remove(0);
                        arrow::compute::cast(&picked, self.child.types[position].data_type())?
                    }
                    Action::SetDefault => {
                        let binder = crate::plan::Binder::plain(&scope);
                        let default = binder.constant(super::default_of(&self.child.def.columns[position])?)?;
                        let one = default.to_array_of_size(fresh.len())?;
                        arrow::compute::cast(&one, self.child.types[position].data_type())?
                    }
                    _ => arrow::array::new_null_array(self.child.types[position].data_type(), fresh.len()),
                };
            }
            writer.update(&old, new, &at, &set).await?;
        }
        Box::pin(writer.finish()).await
    }
}

/// Stored columns from a batch that holds some of them first; the others are NULL.
pub(crate) fn spread(table: &TableEntry, positions: &[usize], batch: &RecordBatch) -> Vec<ArrayRef> {
    (0..table.def.columns.len())
        .map(|at| match positions.iter().position(|&position| position == at) {
            Some(column) => batch.column(column).clone(),
            None => arrow::array::new_null_array(table.types[at].data_type(), batch.num_rows()),
        })
        .collect()
}

/// Adds `column IN (…)` above the scan of a table.
fn narrow(
    plan: datafusion::logical_expr::LogicalPlan,
    column: &str,
    table: &str,
    values: Vec<datafusion::common::ScalarValue>,
) -> Result<datafusion::logical_expr::LogicalPlan> {
    use datafusion::common::tree_node::{Transformed, TreeNode};
    use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder, lit};
    let result = plan.transform_up(|node| match &node {
        LogicalPlan::TableScan(scan) if scan.table_name.table() == table => {
            let list = values.iter().map(|value| lit(value.clone())).collect();
            let column = Expr::Column(datafusion::common::Column::new(Some(scan.table_name.clone()), column));
            Ok(Transformed::yes(LogicalPlanBuilder::from(node).filter(column.in_list(list, false))?.build()?))
        }
        _ => Ok(Transformed::no(node)),
    })?;
    Ok(result.data)
}

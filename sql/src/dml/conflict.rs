//! `INSERT … ON CONFLICT`.
//!
//! Every arbiter looks up its keys for all rows of a batch; then the rows are walked in order. A row meets what was there before
//! and the rows of the statement that were inserted or changed before it, not those that were left out.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, FieldRef, Schema};
use base::{RowKey, SqlState};
use codec::{KeyCodec, StoredSchema};
use storage::{Found, Locator, ScanSpec};

use super::writer::{Met, TableWriter, index_entries, pick};
use super::{Target, assignments, check_assignable, hint};
use crate::catalog::{IndexEntry, TableEntry, UniqueKey};
use crate::parse::statement as st;
use crate::plan::{Binder, RowExpr, Scope, fold};
use crate::{Error, Result};

/// What decides whether a row is there already.
#[derive(Clone)]
enum Arbiter {
    Primary,
    Index(Arc<IndexEntry>),
}

impl Arbiter {
    fn schema<'a>(&'a self, table: &'a TableEntry) -> &'a Arc<StoredSchema> {
        match self {
            Arbiter::Primary => &table.stored,
            Arbiter::Index(index) => &index.stored,
        }
    }

    /// Its keys for rows given by stored columns; `None` for rows that cannot conflict.
    fn keys(&self, writer: &TableWriter, columns: &[ArrayRef]) -> Result<Vec<Option<RowKey>>> {
        match self {
            Arbiter::Primary => Ok(writer.keys(columns)?.into_iter().map(Some).collect()),
            Arbiter::Index(index) => {
                let entries = index_entries(&writer.table, index, columns)?;
                let keys =
                    KeyCodec::new(&index.stored).and_then(|codec| codec.keys(&entries)).map_err(Error::classified)?;
                let rows = keys.into_iter().enumerate().map(|(row, key)| {
                    let distinct =
                        index.def.nulls_distinct && index.positions.iter().any(|&at| columns[at].is_null(row));
                    (!distinct).then_some(key)
                });
                Ok(rows.collect())
            }
        }
    }
}

/// ON CONFLICT, bound.
pub(super) struct Conflict {
    arbiters: Vec<Arbiter>,
    update: Option<Update>,
    /// Keys of the rows this statement inserted or changed.
    met: Met,
}

/// A row's key for one arbiter.
struct Proposal {
    key: RowKey,
    /// The same, told from the keys of other arbiters.
    met: RowKey,
    /// The row that has it already.
    there: Option<Found>,
}

struct Update {
    set: Vec<usize>,
    values: RowExpr,
    condition: Option<RowExpr>,
}

fn arbiters(table: &TableEntry, target: Option<&st::ConflictTarget>) -> Result<Vec<Arbiter>> {
    let of = |key: UniqueKey<'_>| match key {
        UniqueKey::Primary(_) => Arbiter::Primary,
        UniqueKey::Index(index) => Arbiter::Index(index.clone()),
    };
    match target {
        None => {
            let mut all: Vec<Arbiter> = table.def.primary_key.iter().map(|_| Arbiter::Primary).collect();
            all.extend(table.indexes.iter().filter(|index| index.def.unique).cloned().map(Arbiter::Index));
            Ok(all)
        }
        Some(st::ConflictTarget::Columns(names)) => {
            let ids = names
                .iter()
                .map(|name| super::assignable(table, name).map(|at| table.def.columns[at].id))
                .collect::<Result<Vec<_>>>()?;
            table.unique_over(&ids).map(|key| vec![of(key)]).ok_or_else(|| {
                Error::state(
                    SqlState::INVALID_COLUMN_REFERENCE,
                    "there is no unique or exclusion constraint matching the ON CONFLICT specification",
                )
            })
        }
        Some(st::ConflictTarget::Constraint(name)) => {
            let name = name.0.last().and_then(|part| part.as_ident()).map(fold).unwrap_or_default();
            if table.def.primary_key.as_ref().is_some_and(|key| key.name == name) {
                return Ok(vec![Arbiter::Primary]);
            }
            match table.indexes.iter().find(|index| index.def.unique && index.def.name == name) {
                Some(index) => Ok(vec![Arbiter::Index(index.clone())]),
                None => Err(Error::state(
                    SqlState::UNDEFINED_OBJECT,
                    format!("constraint \"{name}\" for table \"{}\" does not exist", table.def.name),
                )),
            }
        }
    }
}

fn compile(scope: &Scope, target: &Target, on: &st::OnConflict) -> Result<Option<Update>> {
    let st::ConflictAction::Update { assignments: list, selection } = &on.action else {
        return Ok(None);
    };
    let table = &target.table;
    let set = assignments(table, list)?;
    let schema = nullable(&table.arrow);
    let relations = [(target.alias.value.as_str(), &schema), ("excluded", &schema)];
    let binder = Binder::plain(scope);
    let values = set.iter().map(|(at, value)| (value.clone(), Some(table.types[*at].field_ref("v")))).collect();
    let check = |number: usize, from: &DataType| check_assignable(table, set[number].0, from);
    Ok(Some(Update {
        values: RowExpr::compile_checked(&binder, &relations, values, Some(&check))?,
        condition: selection
            .as_ref()
            .map(|condition| RowExpr::compile(&binder, &relations, vec![(condition.clone(), None)]))
            .transpose()?,
        set: set.into_iter().map(|(at, _)| at).collect(),
    }))
}

/// Parameter types inside the clause.
pub(super) fn types(scope: &Scope, target: &Target, on: &st::OnConflict, known: &mut [Option<FieldRef>]) -> Result<()> {
    arbiters(&target.table, on.target.as_ref())?;
    let st::ConflictAction::Update { assignments: list, selection } = &on.action else {
        return Ok(());
    };
    let table = &target.table;
    let schema = nullable(&table.arrow);
    let joined = datafusion::common::DFSchema::try_from_qualified_schema(target.alias.value.as_str(), &schema)?
        .join(&datafusion::common::DFSchema::try_from_qualified_schema("excluded", &schema)?)?;
    let binder = Binder::plain(scope);
    let mut values: Vec<_> = Vec::new();
    for (at, value) in assignments(table, list)? {
        hint(known, &value, &table.types[at].field_ref("v"));
        values.push(value);
    }
    values.extend(selection.iter().cloned());
    for value in values {
        use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
        let (expr, _) = binder.expr(value, &joined)?.infer_placeholder_types(&joined)?;
        expr.apply(|expr| {
            if let datafusion::logical_expr::Expr::Placeholder(placeholder) = expr {
                let at = placeholder.id.trim_start_matches('$').parse::<usize>().ok().and_then(|at| at.checked_sub(1));
                if let (Some(slot), Some(field)) = (at.and_then(|at| known.get_mut(at)), &placeholder.field) {
                    slot.get_or_insert_with(|| field.clone());
                }
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    Ok(())
}

impl Conflict {
    pub(super) fn new(scope: &Scope, target: &Target, on: &st::OnConflict) -> Result<Self> {
        let update = compile(scope, target, on)?;
        if update.is_some() && on.target.is_none() {
            return Err(Error::syntax("ON CONFLICT DO UPDATE requires inference specification or constraint name"));
        }
        Ok(Self { arbiters: arbiters(&target.table, on.target.as_ref())?, update, met: Met::default() })
    }

    /// Inserts what is new, and does the action for the rest. Returns the stored columns of the rows written.
    pub(super) async fn insert(
        &mut self,
        writer: &mut TableWriter,
        visible: &[ArrayRef],
    ) -> Result<Vec<Vec<ArrayRef>>> {
        let columns = writer.stored_columns(visible)?;
        writer.check(&columns)?;
        let rows = columns.first().map_or(0, |array| array.len());
        let proposals = self.look_up(writer, &columns).await?;
        let mut new: Vec<usize> = Vec::new();
        let mut existing: Vec<(usize, Found, RowKey)> = Vec::new();
        for row in 0..rows {
            let keys: Vec<&Proposal> = proposals.iter().filter_map(|of_arbiter| of_arbiter[row].as_ref()).collect();
            let there = keys.iter().find_map(|proposal| proposal.there.map(|there| (there, proposal.key.clone())));
            let again = keys.iter().any(|proposal| self.met.contains(&proposal.met));
            if self.update.is_some() && again {
                return Err(twice());
            }
            if self.update.is_some() || (there.is_none() && !again) {
                // A row that is left out takes no key from the rows behind it.
                for proposal in &keys {
                    self.met.insert(&proposal.met);
                }
            }
            match there {
                Some((there, key)) if self.update.is_some() => existing.push((row, there, key)),
                None if !again => new.push(row),
                _ => {}
            }
        }
        let mut written = Vec::new();
        if !new.is_empty() {
            written.push(writer.insert_stored(pick(&columns, &new)?).await?);
        }
        if !existing.is_empty() {
            if let Some(changed) = self.change(writer, &columns, &existing).await? {
                written.push(changed);
            }
        }
        Ok(written)
    }

    /// What each arbiter has to say about each row: its key, locked, and the row that holds it already.
    async fn look_up(&self, writer: &TableWriter, columns: &[ArrayRef]) -> Result<Vec<Vec<Option<Proposal>>>> {
        let mut proposals = Vec::with_capacity(self.arbiters.len());
        for arbiter in &self.arbiters {
            let keys = arbiter.keys(writer, columns)?;
            let wanted: Vec<RowKey> = keys.iter().flatten().cloned().collect();
            let schema = arbiter.schema(&writer.table);
            // Whoever holds the key decides first; afterwards the answer cannot change.
            writer.txn.storage.lock(schema.table, &wanted).await.map_err(Error::classified)?;
            let view = writer.txn.storage.view(schema).map_err(Error::classified)?;
            let mut found = view.find(&wanted).await.map_err(Error::classified)?.into_iter();
            let of_rows = keys.into_iter().map(|key| {
                let key = key?;
                let mut tagged = schema.table.0.to_be_bytes().to_vec();
                tagged.extend_from_slice(key.as_bytes());
                Some(Proposal { there: found.next().flatten(), met: RowKey(tagged.into()), key })
            });
            proposals.push(of_rows.collect());
        }
        Ok(proposals)
    }

    async fn change(
        &self,
        writer: &mut TableWriter,
        columns: &[ArrayRef],
        existing: &[(usize, Found, RowKey)],
    ) -> Result<Option<Vec<ArrayRef>>> {
        let Some(update) = &self.update else {
            return Ok(None);
        };
        let table = writer.table.clone();
        // The keys of the rows that are there, in the order of `existing`.
        let keys: Vec<RowKey> = match &self.arbiters[0] {
            Arbiter::Primary => existing.iter().map(|(_, _, key)| key.clone()).collect(),
            Arbiter::Index(index) => {
                let entries: Vec<RowKey> = existing.iter().map(|(_, _, key)| key.clone()).collect();
                let view = writer.txn.storage.view(&index.stored).map_err(Error::classified)?;
                let first = index.stored.columns.len() - index.key.len();
                let spec = ScanSpec::new((first..index.stored.columns.len()).collect());
                let rows = view.get(&entries, &spec).await.map_err(Error::classified)?;
                KeyCodec::new(&table.stored)
                    .and_then(|codec| codec.keys_of_columns(rows.columns()))
                    .map_err(Error::classified)?
            }
        };
        let view = writer.txn.storage.view(&table.stored).map_err(Error::classified)?;
        if !matches!(self.arbiters[0], Arbiter::Primary) {
            writer.txn.storage.lock(table.stored.table, &keys).await.map_err(Error::classified)?;
        }
        let found = view.find(&keys).await.map_err(Error::classified)?;
        let all: Vec<usize> = (0..table.stored.columns.len()).collect();
        let old = view.get(&keys, &ScanSpec::new(all)).await.map_err(Error::classified)?;
        if old.num_rows() != keys.len() {
            return Err(Error::internal("a conflicting row is not where its key says"));
        }
        let excluded = pick(columns, &existing.iter().map(|(row, _, _)| *row).collect::<Vec<_>>())?;
        let mut old: Vec<ArrayRef> = old.columns().to_vec();
        let mut excluded = excluded;
        let mut locators: Vec<Locator> = found
            .into_iter()
            .map(|found| {
                found.map(|found| found.locator).ok_or_else(|| Error::internal("a conflicting row has no place"))
            })
            .collect::<Result<_>>()?;
        if let Some(condition) = &update.condition {
            let holds = condition.condition(0, &side_by_side(&table, &old, &excluded)?)?;
            let chosen: Vec<usize> = (0..holds.len()).filter(|&row| holds.is_valid(row) && holds.value(row)).collect();
            if chosen.is_empty() {
                return Ok(None);
            }
            old = pick(&old, &chosen)?;
            excluded = pick(&excluded, &chosen)?;
            locators = chosen.iter().map(|&row| locators[row]).collect();
        }
        let values = update.values.evaluate(&side_by_side(&table, &old, &excluded)?)?;
        let mut new = old.clone();
        for (&at, value) in update.set.iter().zip(values) {
            new[at] = value;
        }
        let changed = writer.update(&old, new, &locators, &update.set).await?;
        // Rows that follow must see the new keys.
        writer.put_moved().await?;
        Ok(Some(changed))
    }
}

fn twice() -> Error {
    Error::state(SqlState::CARDINALITY_VIOLATION, "ON CONFLICT DO UPDATE command cannot affect row a second time")
        .with_hint(
            "Ensure that no rows proposed for insertion within the same command have duplicate constrained values.",
        )
}

fn nullable(schema: &Schema) -> Schema {
    Schema::new(schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true)).collect::<Vec<_>>())
}

/// Visible columns of the existing row, then of the proposed row.
fn side_by_side(table: &TableEntry, old: &[ArrayRef], excluded: &[ArrayRef]) -> Result<RecordBatch> {
    let mut fields = Vec::new();
    let mut columns = Vec::new();
    for (prefix, arrays) in [("o", old), ("e", excluded)] {
        for (&at, field) in table.visible.iter().zip(table.arrow.fields()) {
            fields.push(field.as_ref().clone().with_nullable(true).with_name(format!("{prefix}{}", field.name())));
            columns.push(arrays[at].clone());
        }
    }
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

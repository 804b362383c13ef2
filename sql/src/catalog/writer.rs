//! Writes catalog rows inside a transaction and keeps the transaction's own view of the catalog beside them.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use base::{SqlState, TableId};
use codec::KeyCodec;
use storage::Transaction;

use super::bootstrap::{names_schema, objects_schema};
use super::cache::Document;
use super::objects::{OBJECT_FORMAT, Object, ObjectId};
use super::{Catalog, Relation};
use crate::{Error, Result};

/// Changes definitions within one transaction.
pub(crate) struct CatalogWriter<'a> {
    transaction: &'a Transaction,
    catalog: Arc<Catalog>,
}

impl<'a> CatalogWriter<'a> {
    /// Starts from what the transaction sees.
    pub(crate) fn new(transaction: &'a Transaction, catalog: Arc<Catalog>) -> Self {
        Self { transaction, catalog }
    }

    /// The catalog with the changes so far.
    pub(crate) fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    fn note(&mut self, id: ObjectId, object: Option<Object>) -> Result<()> {
        self.catalog = Arc::new(self.catalog.with([(id, object)])?);
        Ok(())
    }

    /// Adds an object; fails when its name is taken.
    pub(crate) async fn create(&mut self, object: Object) -> Result<()> {
        if self.name_taken(object.schema(), object.name()) {
            return Err(duplicate(&object));
        }
        self.insert_name(&object).await?;
        self.transaction.insert(&objects_schema(), &object_row(&object)?).await.map_err(Error::classified)?;
        self.note(object.id(), Some(object))
    }

    fn name_taken(&self, schema: ObjectId, name: &str) -> bool {
        if schema == 0 {
            self.catalog.schema(name).is_some() || super::is_virtual_schema(name)
        } else {
            self.catalog.relation(schema, name).is_some()
        }
    }

    /// Replaces an object's definition, its name and schema included.
    pub(crate) async fn replace(&mut self, object: Object) -> Result<()> {
        let old = self
            .catalog
            .object(object.id())
            .cloned()
            .ok_or_else(|| Error::internal(format!("object {} is not in the catalog", object.id())))?;
        if old.name() != object.name() || old.schema() != object.schema() {
            if self.name_taken(object.schema(), object.name()) {
                return Err(duplicate(&object));
            }
            self.delete_name(&old).await?;
            self.insert_name(&object).await?;
        }
        let schema = objects_schema();
        let row = object_row(&object)?;
        let keys = KeyCodec::new(&schema).and_then(|codec| codec.keys(&row)).map_err(Error::classified)?;
        self.transaction.lock(schema.table, &keys).await.map_err(Error::classified)?;
        let view = self.transaction.view(&schema).map_err(Error::classified)?;
        let found = view.find(&keys).await.map_err(Error::classified)?;
        let Some(Some(found)) = found.first() else {
            return Err(Error::internal(format!("object {} has no row", object.id())));
        };
        self.transaction.update(&schema, &row, &[found.locator]).await.map_err(Error::classified)?;
        self.note(object.id(), Some(object))
    }

    /// Removes an object's row and name, nothing else.
    pub(crate) async fn remove(&mut self, id: ObjectId) -> Result<()> {
        let Some(object) = self.catalog.object(id).cloned() else {
            return Ok(());
        };
        self.delete_name(&object).await?;
        self.delete(&objects_schema(), vec![Arc::new(Int64Array::from(vec![i64::from(id)]))]).await?;
        self.note(id, None)
    }

    /// Removes a table with its indexes and owned sequences, and its data.
    pub(crate) async fn drop_table(&mut self, id: ObjectId) -> Result<()> {
        let table = self.catalog.table_by_id(id)?.clone();
        for index in &table.indexes {
            self.drop_index(index.def.id).await?;
        }
        for sequence in self.catalog.owned_sequences(id) {
            self.remove(sequence.id).await?;
        }
        self.remove(id).await?;
        self.transaction.drop_table(TableId(id)).map_err(Error::classified)
    }

    /// Removes an index with its hidden table.
    pub(crate) async fn drop_index(&mut self, id: ObjectId) -> Result<()> {
        self.remove(id).await?;
        self.transaction.drop_table(TableId(id)).map_err(Error::classified)
    }

    /// Removes a schema with everything in it.
    pub(crate) async fn drop_schema(&mut self, id: ObjectId) -> Result<()> {
        let inside: Vec<Relation> = self.catalog.relations_of(id).cloned().collect();
        for relation in inside {
            match relation {
                Relation::Table(table) => self.drop_table(table.def.id).await?,
                Relation::View(view) => self.remove(view.id).await?,
                Relation::Sequence(sequence) => self.remove(sequence.id).await?,
                // Gone with its table, which lives in the same schema.
                Relation::Index(_) => {}
            }
        }
        self.remove(id).await
    }

    async fn insert_name(&self, object: &Object) -> Result<()> {
        let schema = names_schema();
        let row = RecordBatch::try_new(
            schema.arrow().clone(),
            vec![
                Arc::new(Int64Array::from(vec![i64::from(object.schema())])),
                Arc::new(StringArray::from(vec![object.name()])),
                Arc::new(Int64Array::from(vec![i64::from(object.id())])),
            ],
        )?;
        match self.transaction.insert(&schema, &row).await {
            Ok(()) => Ok(()),
            Err(storage::Error::DuplicateKey { .. }) => Err(duplicate(object)),
            Err(error) => Err(Error::classified(error)),
        }
    }

    async fn delete_name(&self, object: &Object) -> Result<()> {
        let key: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(vec![i64::from(object.schema())])),
            Arc::new(StringArray::from(vec![object.name()])),
        ];
        self.delete(&names_schema(), key).await
    }

    async fn delete(&self, schema: &Arc<codec::StoredSchema>, key: Vec<ArrayRef>) -> Result<()> {
        let keys = KeyCodec::new(schema).and_then(|codec| codec.keys_of_columns(&key)).map_err(Error::classified)?;
        self.transaction.lock(schema.table, &keys).await.map_err(Error::classified)?;
        let view = self.transaction.view(schema).map_err(Error::classified)?;
        let found = view.find(&keys).await.map_err(Error::classified)?;
        if let Some(Some(found)) = found.first() {
            self.transaction.delete(schema, &keys, &[found.locator]).await.map_err(Error::classified)?;
        }
        Ok(())
    }
}

fn object_row(object: &Object) -> Result<RecordBatch> {
    let document = serde_json::to_string(&Document { format: OBJECT_FORMAT, object: object.clone() })
        .map_err(|error| Error::internal(format!("object {} cannot be written: {error}", object.id())))?;
    Ok(RecordBatch::try_new(
        objects_schema().arrow().clone(),
        vec![
            Arc::new(Int64Array::from(vec![i64::from(object.id())])),
            Arc::new(StringArray::from(vec![object.kind()])),
            Arc::new(Int64Array::from(vec![i64::from(object.schema())])),
            Arc::new(StringArray::from(vec![object.name()])),
            Arc::new(StringArray::from(vec![document])),
        ],
    )?)
}

fn duplicate(object: &Object) -> Error {
    match object {
        Object::Schema(schema) => {
            Error::state(SqlState::DUPLICATE_SCHEMA, format!("schema \"{}\" already exists", schema.name))
        }
        other => Error::state(SqlState::DUPLICATE_TABLE, format!("relation \"{}\" already exists", other.name())),
    }
}

//! The catalog: every object is a row of a system table, so that definitions are transactional, replicated and time-travelled
//! by the same code as data.
//!
//! Two system tables: `objects` (id → JSON document) and `names` ((schema, name) → id). The second exists so that two
//! transactions that define the same name collide on a key. A [`Catalog`] is the fold of `objects` at one timestamp, immutable
//! and shared; [`CatalogCache`] keeps the newest one and those that transactions still read.
//!
//! # Invariants
//! - CAT-1 a statement at snapshot S binds the definitions committed at or before S, own uncommitted ones on top. Test:
//!   `names_bind_as_of_the_snapshot`.
//! - CAT-2 two transactions cannot create the same name. Test: `the_same_name_twice_collides`.
//! - CAT-3 object ids are never reused.

mod bootstrap;
mod cache;
pub(crate) mod information_schema;
pub(crate) mod objects;
pub(crate) mod typing;
mod writer;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use base::{CommitTs, SqlState};

pub(crate) use bootstrap::{
    CATALOG_NAME, FIRST_SESSION_SCHEMA, INFORMATION_SCHEMA, LATTICE_SCHEMA, PG_CATALOG, bootstrap, is_virtual_schema,
};
pub(crate) use cache::CatalogCache;
pub(crate) use objects::{
    Action, Check, Column, ForeignKey, Identity, Index, IndexEntry, Object, ObjectId, PrimaryKey, SchemaObject,
    Sequence, Table, TableEntry, UniqueKey, View, ViewRead,
};
pub(crate) use typing::SqlType;
pub(crate) use writer::CatalogWriter;

use crate::{Error, Result};

/// Something with a name in a schema.
#[derive(Clone, Debug)]
pub(crate) enum Relation {
    Table(Arc<TableEntry>),
    View(Arc<View>),
    Sequence(Arc<Sequence>),
    Index(Arc<IndexEntry>),
}

impl Relation {
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Relation::Table(_) => "table",
            Relation::View(_) => "view",
            Relation::Sequence(_) => "sequence",
            Relation::Index(_) => "index",
        }
    }

    pub(crate) fn id(&self) -> ObjectId {
        match self {
            Relation::Table(it) => it.def.id,
            Relation::View(it) => it.id,
            Relation::Sequence(it) => it.id,
            Relation::Index(it) => it.def.id,
        }
    }

    pub(crate) fn name(&self) -> &str {
        match self {
            Relation::Table(it) => &it.def.name,
            Relation::View(it) => &it.name,
            Relation::Sequence(it) => &it.name,
            Relation::Index(it) => &it.def.name,
        }
    }

    pub(crate) fn schema(&self) -> ObjectId {
        match self {
            Relation::Table(it) => it.def.schema,
            Relation::View(it) => it.schema,
            Relation::Sequence(it) => it.schema,
            Relation::Index(it) => it.def.schema,
        }
    }
}

/// All definitions at one moment.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    /// The moment it was read at.
    pub(crate) since: CommitTs,
    objects: BTreeMap<ObjectId, Arc<Object>>,
    schemas: BTreeMap<String, Arc<SchemaObject>>,
    relations: BTreeMap<(ObjectId, String), Relation>,
    by_id: HashMap<ObjectId, Relation>,
    /// View queries, parsed once.
    views: parking_lot::Mutex<HashMap<ObjectId, Arc<sqlparser::ast::Query>>>,
}

impl Catalog {
    /// Folds objects.
    pub(crate) fn build(since: CommitTs, objects: BTreeMap<ObjectId, Arc<Object>>) -> Result<Self> {
        let mut schemas = BTreeMap::new();
        let mut temporary = HashMap::new();
        let mut tables: BTreeMap<ObjectId, TableEntry> = BTreeMap::new();
        for object in objects.values() {
            match object.as_ref() {
                Object::Schema(schema) => {
                    if let Some(session) = schema.session {
                        temporary.insert(schema.id, session);
                    }
                    schemas.insert(schema.name.clone(), Arc::new(schema.clone()));
                }
                Object::Table(table) => {
                    tables.insert(table.id, TableEntry::new(table.clone())?);
                }
                _ => {}
            }
        }
        let mut relations = BTreeMap::new();
        let mut by_id = HashMap::new();
        let mut add = |relation: Relation| {
            relations.insert((relation.schema(), relation.name().to_owned()), relation.clone());
            by_id.insert(relation.id(), relation);
        };
        let mut references = Vec::new();
        for table in tables.values() {
            for (at, key) in table.def.foreign_keys.iter().enumerate() {
                references.push((key.table, table.def.id, at));
            }
        }
        for (target, source, at) in references {
            if let Some(table) = tables.get_mut(&target) {
                table.referenced_by.push((source, at));
            }
        }
        for object in objects.values() {
            match object.as_ref() {
                Object::Index(index) => {
                    let Some(table) = tables.get_mut(&index.table) else {
                        return Err(Error::internal(format!("index {} is of no table", index.name)));
                    };
                    let entry = Arc::new(IndexEntry::new(index.clone(), table)?);
                    table.indexes.push(entry.clone());
                    add(Relation::Index(entry));
                }
                Object::View(view) => add(Relation::View(Arc::new(view.clone()))),
                Object::Sequence(sequence) => add(Relation::Sequence(Arc::new(sequence.clone()))),
                Object::Schema(_) | Object::Table(_) => {}
            }
        }
        for (_, mut table) in tables {
            table.temporary = temporary.contains_key(&table.def.schema);
            add(Relation::Table(Arc::new(table)));
        }
        Ok(Self { since, objects, schemas, relations, by_id, views: parking_lot::Mutex::default() })
    }

    /// The same with some objects put or removed (`None`).
    pub(crate) fn with(&self, changes: impl IntoIterator<Item = (ObjectId, Option<Object>)>) -> Result<Self> {
        let mut objects = self.objects.clone();
        for (id, object) in changes {
            match object {
                Some(object) => objects.insert(id, Arc::new(object)),
                None => objects.remove(&id),
            };
        }
        Self::build(self.since, objects)
    }

    pub(crate) fn object(&self, id: ObjectId) -> Option<&Arc<Object>> {
        self.objects.get(&id)
    }

    pub(crate) fn schemas(&self) -> impl Iterator<Item = &Arc<SchemaObject>> {
        self.schemas.values()
    }

    pub(crate) fn schema(&self, name: &str) -> Option<&Arc<SchemaObject>> {
        self.schemas.get(name)
    }

    /// The name of a schema by id.
    pub(crate) fn schema_name(&self, id: ObjectId) -> &str {
        match self.objects.get(&id).map(AsRef::as_ref) {
            Some(Object::Schema(schema)) => &schema.name,
            _ => "?",
        }
    }

    pub(crate) fn relation(&self, schema: ObjectId, name: &str) -> Option<&Relation> {
        self.relations.get(&(schema, name.to_owned()))
    }

    pub(crate) fn relation_by_id(&self, id: ObjectId) -> Option<&Relation> {
        self.by_id.get(&id)
    }

    pub(crate) fn relations(&self) -> impl Iterator<Item = &Relation> {
        self.relations.values()
    }

    pub(crate) fn relations_of(&self, schema: ObjectId) -> impl Iterator<Item = &Relation> {
        self.relations.values().filter(move |relation| relation.schema() == schema)
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &Arc<TableEntry>> {
        self.relations.values().filter_map(|relation| match relation {
            Relation::Table(table) => Some(table),
            _ => None,
        })
    }

    /// A table by id.
    pub(crate) fn table_by_id(&self, id: ObjectId) -> Result<&Arc<TableEntry>> {
        match self.by_id.get(&id) {
            Some(Relation::Table(table)) => Ok(table),
            _ => Err(Error::state(SqlState::UNDEFINED_TABLE, format!("table {id} does not exist"))),
        }
    }

    /// A view's query, parsed once per catalog.
    pub(crate) fn view_query(&self, view: &View) -> Result<Arc<sqlparser::ast::Query>> {
        if let Some(query) = self.views.lock().get(&view.id) {
            return Ok(query.clone());
        }
        let query = Arc::new(crate::plan::parse_query(&view.query)?);
        self.views.lock().insert(view.id, query.clone());
        Ok(query)
    }

    /// Finds a relation by an optional schema name and the search path. Names are as the catalog writes them.
    pub(crate) fn find(&self, schema: Option<&str>, name: &str, path: &[String]) -> Option<&Relation> {
        match schema {
            Some(schema) => self.schema(schema).and_then(|schema| self.relation(schema.id, name)),
            None => {
                path.iter().filter_map(|schema| self.schema(schema)).find_map(|schema| self.relation(schema.id, name))
            }
        }
    }

    /// What must go or be changed when `id` goes: views that read it.
    pub(crate) fn dependents(&self, id: ObjectId) -> Vec<Relation> {
        self.relations
            .values()
            .filter(|relation| matches!(relation, Relation::View(view) if view.depends.contains(&id)))
            .cloned()
            .collect()
    }

    /// Sequences that belong to a table.
    pub(crate) fn owned_sequences(&self, table: ObjectId) -> Vec<Arc<Sequence>> {
        self.relations
            .values()
            .filter_map(|relation| match relation {
                Relation::Sequence(sequence) if sequence.owned_by.is_some_and(|(owner, _)| owner == table) => {
                    Some(sequence.clone())
                }
                _ => None,
            })
            .collect()
    }
}

//! What the names in a view's query mean.
//!
//! The catalog keeps a view's query as it was written. What its names meant when the view was made is kept beside it, name by name:
//! the object and the columns it had ([`ViewRead`]). The query is planned against exactly that, whoever reads the view: a temporary
//! table of the reader's or a later table in an earlier schema does not capture a name, and `*`, `NATURAL JOIN` and unqualified
//! columns mean what they meant, because columns that came later are not there.
//!
//! # Invariants
//! - VIEW-1 a view's columns do not move when its tables gain columns. Test: `tests/slt/suite/ddl/views_keep.slt`.
//! - VIEW-2 a view means the same to every reader. Test: `tests/slt/suite/ddl/views_keep.slt`.
//!
//! # Not here
//! Names of sequences in texts (`nextval('s')`): they are values, looked up in the path of whoever calls.

use std::ops::ControlFlow;

use sqlparser::ast::{self, Visit, Visitor};

use super::context::Core;
use super::relation::system_time;
use crate::catalog::{Catalog, FIRST_SESSION_SCHEMA, ObjectId, Relation, View, ViewRead};

/// What a name in a view's query means: the relation, and its columns as the view knows them. `moment` is the text of the name's
/// AS OF.
pub(super) fn named<'a>(
    view: &'a View,
    catalog: &'a Catalog,
    (schema, name): (Option<&str>, &str),
    moment: Option<&str>,
) -> Option<(&'a Relation, Option<&'a [String]>)> {
    let Some(reads) = &view.reads else {
        return by_path(view, catalog, (schema, name)).map(|relation| (relation, None));
    };
    let read = reads
        .iter()
        .find(|read| read.name == name && read.schema.as_deref() == schema && read.moment.as_deref() == moment)?;
    let relation = match catalog.relation_by_id(read.id) {
        Some(relation) => relation,
        // A moment that moves (`now() - …`) may come to a time when another table had the name.
        None if moment.is_some() => by_path(view, catalog, (schema, name))?,
        None => return None,
    };
    Some((relation, Some(&read.columns)))
}

/// What a name means by the path that the view was defined under, without the temporary tables of whoever defined it.
fn by_path<'a>(view: &View, catalog: &'a Catalog, (schema, name): (Option<&str>, &str)) -> Option<&'a Relation> {
    let path: Vec<String> =
        view.path.iter().filter(|schema| !schema.starts_with(FIRST_SESSION_SCHEMA)).cloned().collect();
    catalog.find(schema, name, &path)
}

/// What the names in the query of a new view mean, as its maker sees it.
pub(super) fn reads(core: &Core, query: &ast::Query) -> Vec<ViewRead> {
    struct Names(Vec<(ast::ObjectName, Option<String>)>);

    impl Visitor for Names {
        type Break = ();

        fn pre_visit_table_factor(&mut self, factor: &ast::TableFactor) -> ControlFlow<()> {
            if let ast::TableFactor::Table { name, args: None, version, .. } = factor {
                // A version that names no moment has been refused when the query was bound.
                let moment =
                    version.as_ref().and_then(|version| system_time(version).ok()).map(|moment| moment.to_string());
                self.0.push((name.clone(), moment));
            }
            ControlFlow::Continue(())
        }
    }

    let mut names = Names(Vec::new());
    let _ = query.visit(&mut names);
    let mut reads: Vec<ViewRead> = Vec::new();
    for (name, moment) in names.0 {
        // What is no relation is a name that WITH defines, or a system view.
        let Ok((schema, name)) = core.scope.split_name(&name) else { continue };
        if reads.iter().any(|read| read.name == name && read.schema == schema && read.moment == moment) {
            continue;
        }
        let Some((relation, _)) = core.find(schema.as_deref(), &name, moment.as_deref()) else { continue };
        reads.push(ViewRead { id: relation.id(), columns: columns(relation), schema, name, moment });
    }
    reads
}

/// The columns `*` stands for.
pub(super) fn columns(relation: &Relation) -> Vec<String> {
    match relation {
        Relation::Table(table) => table.arrow.fields().iter().map(|field| field.name().clone()).collect(),
        Relation::View(view) => view.columns.clone(),
        Relation::Sequence(_) | Relation::Index(_) => Vec::new(),
    }
}

/// The objects that a view depends on: what it reads, as far as it is there now.
pub(crate) fn depends(catalog: &Catalog, reads: &[ViewRead]) -> Vec<ObjectId> {
    let mut depends: Vec<ObjectId> =
        reads.iter().map(|read| read.id).filter(|id| catalog.relation_by_id(*id).is_some()).collect();
    depends.sort_unstable();
    depends.dedup();
    depends
}

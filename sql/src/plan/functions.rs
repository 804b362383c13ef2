//! Functions whose answer depends on the session: who asks, which settings hold, which sequence moves.
//!
//! They are made per statement, so that they see the statement's catalog and cannot leak another session's identity.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use base::SqlState;
use datafusion::common::ScalarValue;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, create_udf,
};

use crate::catalog::{Catalog, Relation, Sequence};
use crate::session::SessionInner;
use crate::{Error, Result};

/// What the functions look at.
#[derive(Clone)]
pub(crate) struct FunctionScope {
    pub(crate) session: Arc<SessionInner>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) path: Vec<String>,
    pub(crate) snapshot: i64,
}

impl FunctionScope {
    fn sequence(&self, name: &str) -> Result<Arc<Sequence>> {
        let missing = || Error::state(SqlState::UNDEFINED_TABLE, format!("relation \"{name}\" does not exist"));
        let parsed = crate::plan::parse_expr(name).map_err(|_| missing())?;
        let idents = match parsed {
            sqlparser::ast::Expr::Identifier(ident) => vec![ident],
            sqlparser::ast::Expr::CompoundIdentifier(idents) => idents,
            _ => return Err(missing()),
        };
        let names: Vec<String> = idents.iter().map(super::fold).collect();
        let (schema, table) = match names.as_slice() {
            [.., schema, table] => (Some(schema.as_str()), table),
            [table] => (None, table),
            [] => return Err(missing()),
        };
        match self.catalog.find(schema, table, &self.path) {
            Some(Relation::Sequence(sequence)) => Ok(sequence.clone()),
            Some(_) => Err(Error::state(SqlState::WRONG_OBJECT_TYPE, format!("\"{table}\" is not a sequence"))),
            None => Err(missing()),
        }
    }

    fn sequence_by_id(&self, id: i64) -> Result<Arc<Sequence>> {
        match u32::try_from(id).ok().and_then(|id| self.catalog.relation_by_id(id)) {
            Some(Relation::Sequence(sequence)) => Ok(sequence.clone()),
            _ => Err(Error::internal(format!("sequence {id} is gone"))),
        }
    }

    fn next(&self, sequence: &Sequence, count: usize) -> Result<ArrayRef> {
        let engine = &self.session.engine;
        let values = engine.sequences.next_blocking(&engine.store, sequence, count)?;
        if let Some(&last) = values.last() {
            self.session.note_sequence(sequence.id, last);
        }
        Ok(Arc::new(Int64Array::from(values)))
    }
}

fn text(value: &ColumnarValue, rows: usize) -> DataFusionResult<StringArray> {
    let array = cast(&value.clone().into_array(rows)?, &DataType::Utf8)?;
    Ok(array.as_any().downcast_ref::<StringArray>().cloned().unwrap_or_else(|| StringArray::new_null(rows)))
}

fn length(values: &[ColumnarValue]) -> usize {
    values
        .iter()
        .find_map(|value| match value {
            ColumnarValue::Array(array) => Some(array.len()),
            ColumnarValue::Scalar(_) => None,
        })
        .unwrap_or(1)
}

/// Names of the functions that [`session_functions`] makes.
const NAMES: [&str; 18] = [
    "current_user",
    "session_user",
    "user",
    "current_role",
    "current_catalog",
    "current_database",
    "current_schema",
    "version",
    "pg_backend_pid",
    "txid_current",
    "pg_current_snapshot_ts",
    "has_role",
    "current_setting",
    "nextval",
    NEXT_IDENTITY,
    "currval",
    "lastval",
    "setval",
];

/// Whether a function is made per statement.
pub(super) fn is_session_function(name: &str) -> bool {
    NAMES.contains(&name)
}

/// The session functions for one statement.
pub(crate) fn session_functions(scope: &FunctionScope) -> Vec<ScalarUDF> {
    let mut all = Vec::new();
    let mut constant = |names: &[&str], value: ScalarValue| {
        for name in names {
            let value = value.clone();
            all.push(create_udf(
                name,
                vec![],
                value.data_type(),
                Volatility::Stable,
                Arc::new(move |_: &[ColumnarValue]| Ok(ColumnarValue::Scalar(value.clone()))),
            ));
        }
    };
    let session = &scope.session;
    let user = ScalarValue::Utf8(Some(session.principal.name().to_owned()));
    constant(&["current_user", "session_user", "user", "current_role"], user);
    constant(
        &["current_catalog", "current_database"],
        ScalarValue::Utf8(Some(crate::catalog::CATALOG_NAME.to_owned())),
    );
    let schema = scope.path.iter().find(|schema| scope.catalog.schema(schema).is_some()).cloned();
    constant(&["current_schema"], ScalarValue::Utf8(schema));
    constant(&["version"], ScalarValue::Utf8(Some(format!("LatticeDB {}", session.engine.options.version))));
    constant(&["pg_backend_pid"], ScalarValue::Int32(Some(i32::try_from(session.id.0 & 0x7fff_ffff).unwrap_or(0))));
    constant(&["txid_current", "pg_current_snapshot_ts"], ScalarValue::Int64(Some(scope.snapshot)));

    let admin = session.principal.is_admin();
    let name = session.principal.name().to_owned();
    all.push(create_udf(
        "has_role",
        vec![DataType::Utf8],
        DataType::Boolean,
        Volatility::Stable,
        Arc::new(move |arguments: &[ColumnarValue]| {
            let rows = length(arguments);
            let roles = text(&arguments[0], rows)?;
            let held = |role: &str| role == name || (admin && role == "admin");
            Ok(ColumnarValue::Array(Arc::new(roles.iter().map(|role| role.map(held)).collect::<BooleanArray>())))
        }),
    ));

    let settings = session.settings.read().clone();
    all.push(create_udf(
        "current_setting",
        vec![DataType::Utf8],
        DataType::Utf8,
        Volatility::Stable,
        Arc::new(move |arguments: &[ColumnarValue]| {
            let names = text(&arguments[0], length(arguments))?;
            let values = names
                .iter()
                .map(|name| name.map(|name| settings.get(name).map(str::to_owned)).transpose())
                .collect::<Result<StringOptions>>()?;
            Ok(ColumnarValue::Array(Arc::new(StringArray::from(values.0))))
        }),
    ));

    all.push(PerRow::udf("nextval", vec![DataType::Utf8], next_value, scope));
    all.push(PerRow::udf(NEXT_IDENTITY, vec![DataType::Int64], next_identity, scope));
    let at = scope.clone();
    all.push(create_udf(
        "currval",
        vec![DataType::Utf8],
        DataType::Int64,
        Volatility::Volatile,
        Arc::new(move |arguments: &[ColumnarValue]| {
            let names = text(&arguments[0], length(arguments))?;
            let values = names
                .iter()
                .map(|name| {
                    let Some(name) = name else { return Ok(None) };
                    let sequence = at.sequence(name)?;
                    let current = at.session.current_sequence(sequence.id).ok_or_else(|| {
                        Error::state(
                            SqlState::OBJECT_NOT_IN_STATE,
                            format!("currval of sequence \"{}\" is not yet defined in this session", sequence.name),
                        )
                    })?;
                    Ok(Some(current))
                })
                .collect::<Result<Vec<Option<i64>>>>()?;
            Ok(ColumnarValue::Array(Arc::new(Int64Array::from(values))))
        }),
    ));
    let at = scope.clone();
    all.push(create_udf(
        "lastval",
        vec![],
        DataType::Int64,
        Volatility::Volatile,
        Arc::new(move |_: &[ColumnarValue]| {
            let last = at.session.last_sequence().ok_or_else(|| {
                Error::state(SqlState::OBJECT_NOT_IN_STATE, "lastval is not yet defined in this session")
            })?;
            Ok(ColumnarValue::Scalar(ScalarValue::Int64(Some(last))))
        }),
    ));
    all.push(PerRow::udf("setval", vec![DataType::Utf8, DataType::Int64], set_value, scope));
    debug_assert!(
        all.iter().all(|function| is_session_function(function.name())),
        "NAMES lists every function of the session"
    );
    all
}

struct StringOptions(Vec<Option<String>>);

impl FromIterator<Option<String>> for StringOptions {
    fn from_iter<I: IntoIterator<Item = Option<String>>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// The name of the function behind identity columns: the sequence by id, one value per row.
pub(crate) const NEXT_IDENTITY: &str = "lattice_next_identity";

/// `nextval(name)`: one value per row; NULL of NULL.
fn next_value(scope: &FunctionScope, arguments: &[ColumnarValue], rows: usize) -> Result<ArrayRef> {
    if let ColumnarValue::Scalar(name) = &arguments[0] {
        return match name.try_as_str().flatten() {
            Some(name) => scope.next(scope.sequence(name)?.as_ref(), rows),
            None => Ok(Arc::new(Int64Array::new_null(rows))),
        };
    }
    let names = text(&arguments[0], rows)?;
    let mut values = Int64Array::builder(rows);
    for name in &names {
        match name {
            Some(name) => {
                let next = scope.next(scope.sequence(name)?.as_ref(), 1)?;
                values.append_slice(next.as_primitive::<Int64Type>().values());
            }
            None => values.append_null(),
        }
    }
    Ok(Arc::new(values.finish()))
}

/// `lattice_next_identity(id)`: one value per row.
fn next_identity(scope: &FunctionScope, arguments: &[ColumnarValue], rows: usize) -> Result<ArrayRef> {
    let ColumnarValue::Scalar(ScalarValue::Int64(Some(id))) = &arguments[0] else {
        return Err(Error::internal("an identity sequence is named by a constant"));
    };
    scope.next(scope.sequence_by_id(*id)?.as_ref(), rows)
}

/// `setval(name, value)`. A NULL changes nothing and gives NULL.
fn set_value(scope: &FunctionScope, arguments: &[ColumnarValue], rows: usize) -> Result<ArrayRef> {
    let names = text(&arguments[0], rows)?;
    let values = cast(&arguments[1].clone().into_array(rows)?, &DataType::Int64)?;
    let values = values.as_primitive::<Int64Type>();
    let mut set = Int64Array::builder(rows);
    for (name, value) in names.iter().zip(values) {
        if let (Some(name), Some(value)) = (name, value) {
            let sequence = scope.sequence(name)?;
            crate::ddl::sequence::set_blocking(&scope.session, &sequence, value, true)?;
            scope.session.note_sequence(sequence.id, value);
            set.append_value(value);
        } else {
            set.append_null();
        }
    }
    Ok(Arc::new(set.finish()))
}

/// What a [`PerRow`] does: its arguments and the number of rows give one value per row.
type Work = fn(&FunctionScope, &[ColumnarValue], usize) -> Result<ArrayRef>;

/// A volatile function of the session that gives a bigint for every row. A type of its own because it must know how many rows there
/// are: of a function without that, DataFusion takes one value for all rows when its arguments are constants.
struct PerRow {
    name: &'static str,
    signature: Signature,
    work: Work,
    scope: FunctionScope,
}

impl PerRow {
    fn udf(name: &'static str, arguments: Vec<DataType>, work: Work, scope: &FunctionScope) -> ScalarUDF {
        ScalarUDF::from(Self {
            name,
            signature: Signature::exact(arguments, Volatility::Volatile),
            work,
            scope: scope.clone(),
        })
    }
}

impl std::fmt::Debug for PerRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for PerRow {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && Arc::ptr_eq(&self.scope.session, &other.scope.session)
    }
}

impl Eq for PerRow {}

impl std::hash::Hash for PerRow {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for PerRow {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DataFusionResult<DataType> {
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> DataFusionResult<ColumnarValue> {
        Ok(ColumnarValue::Array((self.work)(&self.scope, &arguments.args, arguments.number_rows)?))
    }
}

//! A column's type as the catalog keeps it: the canonical text, and what follows from it, computed once.

use arrow::datatypes::{DataType, Field, FieldRef};
use sqlparser::ast;

use crate::Result;
pub(crate) use crate::types::EXTENSION;
use crate::types::TypeSpec;

/// Whether a field says that its texts are JSON.
pub(crate) fn is_json(field: &Field) -> bool {
    field.metadata().get(EXTENSION).is_some_and(|name| name == "arrow.json")
}

/// A SQL type.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SqlType {
    spec: TypeSpec,
    name: String,
    data_type: DataType,
}

impl From<TypeSpec> for SqlType {
    fn from(spec: TypeSpec) -> Self {
        Self { name: spec.name(), data_type: spec.data_type(), spec }
    }
}

impl SqlType {
    /// The canonical text.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The name as PostgreSQL displays it.
    pub(crate) fn display(&self) -> String {
        self.spec.display()
    }

    /// The Arrow type.
    pub(crate) fn data_type(&self) -> &DataType {
        &self.data_type
    }

    /// The longest text allowed.
    pub(crate) fn length(&self) -> Option<usize> {
        self.spec.length()
    }

    /// A field of this type.
    pub(crate) fn field(&self, name: &str, nullable: bool) -> Field {
        self.spec.field(name, nullable)
    }

    /// What a value is cast to when it is assigned: a text keeps its length, because too long a text is an error there,
    /// whereas a cast would cut it.
    pub(crate) fn field_ref(&self, name: &str) -> FieldRef {
        if self.spec.is_text() { TypeSpec::Text.field_ref(name) } else { self.spec.field_ref(name) }
    }

    /// The name to use in a cast that assigns.
    pub(crate) fn assigned_name(&self) -> &str {
        if self.spec.is_text() { "text" } else { &self.name }
    }

    /// Digits or characters, and digits after the point, as JDBC asks for them.
    pub(crate) fn precision(&self) -> (Option<i32>, Option<i32>) {
        self.spec.precision()
    }

    /// Reads the canonical text.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        Ok(TypeSpec::parse(text)?.into())
    }

    /// Reads a type of a statement.
    pub(crate) fn from_ast(sql: &ast::DataType) -> Result<Self> {
        Ok(TypeSpec::from_sql(sql)?.into())
    }

    /// The type for Arrow data of a client or of a plan.
    pub(crate) fn from_arrow(field: &Field) -> Result<Self> {
        Ok(TypeSpec::from_field(field)?.into())
    }
}

//! SQL types.
use crate::error::Result;
pub(crate) fn check(_: &sqlparser::ast::DataType) -> Result<()> { Ok(()) }

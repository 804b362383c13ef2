//! The table modifiers that travel in the carrier `name AT(key => value, …)`.

use sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, TableFactor, TableVersion, Value,
};

use super::{fold, name_parts};
use crate::error::{Error, Result};

/// What was written between a table's name and its alias.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct TableModifiers {
    /// `FOR SYSTEM_TIME …`: `None` reads the newest version.
    pub(crate) system: Option<TimeRange>,
    /// `FOR VALID_TIME …`: `None` reads what is valid now.
    pub(crate) valid: Option<TimeRange>,
    /// `VERSION AS OF n`.
    pub(crate) version: Option<Expr>,
    /// `FOR PORTION OF VALID_TIME`, `VALID PERIOD`.
    pub(crate) portion: Option<Period>,
    /// `JOIN ANN`.
    pub(crate) ann: bool,
    /// `STREAM OF`.
    pub(crate) stream: bool,
}

/// Which versions of one time dimension are read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TimeRange {
    /// `AS OF e`: those current at a moment.
    AsOf(Expr),
    /// `FROM a TO b` (the end excluded) or `BETWEEN a AND b` (included): those current at some moment in between.
    Period(Period),
    /// `ALL`.
    All,
}

/// A period between two moments.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Period {
    /// Where it starts.
    pub(crate) from: Bound,
    /// Where it ends.
    pub(crate) to: Bound,
}

/// One end of a period.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Bound {
    /// The moment.
    pub(crate) at: Expr,
    /// Whether the moment itself belongs to the period.
    pub(crate) inclusive: bool,
}

impl TableModifiers {
    /// The modifiers of a table factor; the default for a factor without.
    pub(crate) fn of(factor: &TableFactor) -> Result<TableModifiers> {
        match factor {
            TableFactor::Table { version: Some(version), .. } => TableModifiers::from_version(version),
            _ => Ok(TableModifiers::default()),
        }
    }

    /// Reads the carrier.
    pub(crate) fn from_version(version: &TableVersion) -> Result<TableModifiers> {
        let function = match version {
            TableVersion::Function(Expr::Function(function)) if name_parts(&function.name) == ["at"] => function,
            TableVersion::ForSystemTimeAsOf(at) | TableVersion::TimestampAsOf(at) => {
                return Ok(TableModifiers { system: Some(TimeRange::AsOf(at.clone())), ..TableModifiers::default() });
            }
            TableVersion::VersionAsOf(version) => {
                return Ok(TableModifiers { version: Some(version.clone()), ..TableModifiers::default() });
            }
            TableVersion::Function(other) => return Err(Error::unsupported(format!("the table modifier {other}"))),
            TableVersion::Changes { .. } => return Err(Error::unsupported("CHANGES on a table")),
        };
        let FunctionArguments::List(FunctionArgumentList { duplicate_treatment: None, args, clauses }) = &function.args
        else {
            return Err(Error::syntax("syntax error: AT needs arguments"));
        };
        if !clauses.is_empty()
            || function.over.is_some()
            || function.filter.is_some()
            || !function.within_group.is_empty()
        {
            return Err(Error::syntax("syntax error: AT takes only arguments"));
        }
        let mut modifiers = TableModifiers::default();
        let mut pieces = Pieces::default();
        for argument in args {
            let FunctionArg::Named { name, arg: FunctionArgExpr::Expr(value), operator: _ } = argument else {
                return Err(Error::syntax(format!("syntax error: {argument} in AT has no name")));
            };
            let name = fold(name);
            let slot = match name.as_str() {
                "system_at" | "timestamp" => &mut pieces.system_at,
                "system_from" => &mut pieces.system.from,
                "system_to" => &mut pieces.system.to,
                "system_through" => &mut pieces.system.through,
                "system_all" => &mut pieces.system_all,
                "valid_at" => &mut pieces.valid_at,
                "valid_from" => &mut pieces.valid.from,
                "valid_to" => &mut pieces.valid.to,
                "valid_through" => &mut pieces.valid.through,
                "valid_all" => &mut pieces.valid_all,
                "portion_from" => &mut pieces.portion.from,
                "portion_to" => &mut pieces.portion.to,
                "portion_after" => &mut pieces.after,
                "portion_through" => &mut pieces.through,
                "version" => &mut modifiers.version,
                "ann" => {
                    modifiers.ann = is_true(value);
                    continue;
                }
                "stream" => {
                    modifiers.stream = is_true(value);
                    continue;
                }
                other => return Err(Error::unsupported(format!("{other} in AT on a table"))),
            };
            if slot.replace(value.clone()).is_some() {
                return Err(Error::syntax(format!("syntax error: {} is given twice for one table", words(&name))));
            }
        }
        modifiers.system = range("SYSTEM_TIME", pieces.system_at, pieces.system, pieces.system_all)?;
        modifiers.valid = range("VALID_TIME", pieces.valid_at, pieces.valid, pieces.valid_all)?;
        modifiers.portion = match (pieces.portion.from, pieces.portion.to) {
            (Some(from), Some(to)) => Some(Period {
                from: Bound { at: from, inclusive: pieces.after.is_none() },
                to: Bound { at: to, inclusive: pieces.through.is_some() },
            }),
            (None, None) => None,
            _ => return Err(Error::syntax("syntax error: a portion needs both ends")),
        };
        if modifiers.version.is_some() && modifiers.system.is_some() {
            return Err(Error::syntax("syntax error: VERSION AS OF together with SYSTEM_TIME"));
        }
        Ok(modifiers)
    }

    /// The words for the first modifier other than `FOR SYSTEM_TIME AS OF`, for an executor that knows only that one.
    pub(crate) fn beyond_as_of(&self) -> Option<&'static str> {
        let TableModifiers { system, valid, version, portion, ann, stream } = self;
        match (system, valid) {
            (Some(TimeRange::Period(_)), _) => return Some("a period of SYSTEM_TIME"),
            (Some(TimeRange::All), _) => return Some("FOR ALL SYSTEM_TIME"),
            (_, Some(TimeRange::AsOf(_))) => return Some("FOR VALID_TIME AS OF"),
            (_, Some(TimeRange::Period(_))) => return Some("a period of VALID_TIME"),
            (_, Some(TimeRange::All)) => return Some("FOR ALL VALID_TIME"),
            (Some(TimeRange::AsOf(_)) | None, None) => {}
        }
        if version.is_some() {
            return Some("VERSION AS OF");
        }
        if portion.is_some() {
            return Some("FOR PORTION OF VALID_TIME");
        }
        if *ann {
            return Some("JOIN ANN");
        }
        stream.then_some("STREAM OF")
    }
}

#[derive(Default)]
struct Ends {
    from: Option<Expr>,
    to: Option<Expr>,
    through: Option<Expr>,
}

#[derive(Default)]
struct Pieces {
    system_at: Option<Expr>,
    system: Ends,
    system_all: Option<Expr>,
    valid_at: Option<Expr>,
    valid: Ends,
    valid_all: Option<Expr>,
    portion: Ends,
    after: Option<Expr>,
    through: Option<Expr>,
}

fn range(dimension: &str, at: Option<Expr>, ends: Ends, all: Option<Expr>) -> Result<Option<TimeRange>> {
    let Ends { from, to, through } = ends;
    let end = match (to, through) {
        (Some(at), None) => Some(Bound { at, inclusive: false }),
        (None, Some(at)) => Some(Bound { at, inclusive: true }),
        (None, None) => None,
        (Some(_), Some(_)) => return Err(twice(dimension)),
    };
    let period = match (from, end) {
        (Some(at), Some(to)) => Some(Period { from: Bound { at, inclusive: true }, to }),
        (None, None) => None,
        _ => return Err(Error::syntax(format!("syntax error: a period of {dimension} needs both ends"))),
    };
    match (at, period, all) {
        (None, None, None) => Ok(None),
        (Some(at), None, None) => Ok(Some(TimeRange::AsOf(at))),
        (None, Some(period), None) => Ok(Some(TimeRange::Period(period))),
        (None, None, Some(_)) => Ok(Some(TimeRange::All)),
        _ => Err(twice(dimension)),
    }
}

fn twice(dimension: &str) -> Error {
    Error::syntax(format!("syntax error: {dimension} is given twice for one table"))
}

fn words(key: &str) -> &str {
    match key.split('_').next() {
        Some("system") => "SYSTEM_TIME",
        Some("valid") => "VALID_TIME",
        Some("portion") => "PORTION OF VALID_TIME",
        _ => key,
    }
}

fn is_true(value: &Expr) -> bool {
    matches!(value, Expr::Value(value) if value.value == Value::Boolean(true))
}

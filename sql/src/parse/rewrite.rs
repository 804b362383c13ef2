//! Trees to trees: PostgreSQL forms that DataFusion does not plan, or plans with another meaning, become forms that it plans right.
//!
//! | written | becomes | because DataFusion |
//! |---|---|---|
//! | `FETCH FIRST n ROWS ONLY` | `LIMIT n` | refuses it |
//! | `t AT TIME ZONE z` | `timezone(z, t)` | makes it a cast, which keeps the instant |
//! | `INTERVAL '1-2'`, `INTERVAL '90' MINUTE` | `INTERVAL '14 months 0 days 0 nanoseconds'` | reads fewer forms |
//! | `EXTRACT(second FROM t)` and other fields with fractions | `date_part('second', t)` of ours | cuts the fraction |
//! | `x::uuid`, `x::jsonb`, `DATE '…'` | `uuid_in(x)`, `jsonb_in(x)`, `date_in('…')` | forgets the type's metadata, reads fewer forms |
//! | `VALUES (x::uuid), (NULL)` | `VALUES (uuid_in(x)), (uuid_in(NULL))` | wants one column's cells to agree |
//! | `s SIMILAR TO p`, `~ i` | `similar_to(s, p)`, `i # -1` | reads p as a regular expression; has no such operator |
//! | `SELECT count(*)` | `SELECT count(*) AS count` | names columns after the expression, and refuses equal names |
//! | `SELECT DISTINCT f(a) … ORDER BY f(a)` | `ORDER BY f` | looks for `a` in the list |
//! | `substring(s FROM 'pattern')` | `substring_regex(s, 'pattern')` | takes only numbers |
//! | `ARRAY(query)` | `(SELECT array_agg(…) FROM (query))` | ignores the query |
//! | `(a, b) = (c, d)`, `<`, `IN` | the comparisons column by column | compares structs |
//! | `pg_catalog.f(x)`, `OPERATOR(pg_catalog.+)` | `f(x)`, `+` | looks the qualified name up |
//! | `e COLLATE "C"` | `e` | refuses it |
//! | `SELECT generate_series(…)`, and other functions that return sets | `SELECT unnest(generate_series(…))` | has scalar functions that return lists |
//! | `FROM f(…) AS a` of one column | `FROM f(…) AS a(a)` | names the column `value` |
//! | `FROM f(…) WITH ORDINALITY` | a subquery with `row_number()` | refuses it |
//! | long chains of `AND`, `OR`, `\|\|`, `UNION` | balanced trees | recurses once per link |

use std::ops::ControlFlow;

use sqlparser::ast::{self as sql, Expr, Ident, ObjectName, Query, SetExpr, TableFactor, VisitMut, VisitorMut};

use super::dialect::call;
use super::fold;
use crate::error::{Error, Result};

/// Rewrites a tree in place.
pub(crate) fn rewrite<T: VisitMut>(tree: &mut T) -> Result<()> {
    match tree.visit(&mut Rewriter { depth: 0 }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(*error),
    }
}

/// Functions that return sets in PostgreSQL, with the scalar function of ours that returns the same values as one list.
pub(crate) const SET_FUNCTIONS: [(&str, &str); 9] = [
    ("generate_series", "generate_series"),
    ("regexp_split_to_table", "regexp_split_to_array"),
    ("string_to_table", "string_to_array"),
    ("regexp_matches", "regexp_matches"),
    ("json_array_elements", "json_array_elements"),
    ("jsonb_array_elements", "json_array_elements"),
    ("json_array_elements_text", "json_array_elements_text"),
    ("jsonb_array_elements_text", "json_array_elements_text"),
    ("json_object_keys", "json_object_keys"),
];

/// The list function behind a function that returns sets.
fn list_function(name: &str) -> Option<&'static str> {
    if name == "jsonb_object_keys" {
        return Some("json_object_keys");
    }
    SET_FUNCTIONS.iter().find(|(set, _)| *set == name).map(|(_, list)| *list)
}

/// Collations whose order is the order of bytes.
pub(crate) fn is_byte_order(collation: &ObjectName) -> bool {
    let name = collation.0.last().and_then(|part| part.as_ident()).map(|ident| ident.value.to_lowercase());
    matches!(name.as_deref(), Some("c" | "posix" | "default" | "ucs_basic" | "c.utf-8" | "c.utf8"))
}

/// A query without rows or columns, to leave behind when one is moved out.
pub(crate) fn empty_query() -> Query {
    Query {
        with: None,
        body: Box::new(SetExpr::Values(sql::Values { explicit_row: false, value_keyword: false, rows: Vec::new() })),
        order_by: None,
        limit_clause: None,
        fetch: None,
        locks: Vec::new(),
        for_clause: None,
        settings: None,
        format_clause: None,
        pipe_operators: Vec::new(),
    }
}

struct Rewriter {
    /// How many queries surround what is visited.
    depth: usize,
}

type Flow = ControlFlow<Box<Error>>;

impl VisitorMut for Rewriter {
    type Break = Box<Error>;

    // Chains are balanced on the way down, so that the traversal itself never goes deep.
    fn pre_visit_query(&mut self, query: &mut Query) -> Flow {
        self.depth += 1;
        balance_set_operations(&mut query.body);
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &mut Expr) -> Flow {
        balance(expr);
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &mut Query) -> Flow {
        self.depth -= 1;
        fetch_to_limit(query);
        sort_by_names(query);
        align_rows(&mut query.body);
        ControlFlow::Continue(())
    }

    // Names come from what was written, so before anything is rewritten.
    fn pre_visit_select(&mut self, select: &mut sql::Select) -> Flow {
        name_items(&mut select.projection, self.depth <= 1);
        ControlFlow::Continue(())
    }

    fn post_visit_select(&mut self, select: &mut sql::Select) -> Flow {
        for item in &mut select.projection {
            if let sql::SelectItem::UnnamedExpr(expr) | sql::SelectItem::ExprWithAlias { expr, alias: _ } = item
                && let Some(unnested) = unnest_call(expr)
            {
                *expr = unnested;
            }
        }
        ControlFlow::Continue(())
    }

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> Flow {
        table_function(factor);
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> Flow {
        match rewrite_expr(expr) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => ControlFlow::Break(Box::new(error)),
        }
    }
}

// ------------------------------------------------------------------------------------------------------------- names of columns

/// What follows a column's name to make it unique.
pub(crate) const MARK: char = '\u{200b}';

/// The name of a column as clients see it: without the marks that keep equal names apart inside the planner.
pub(crate) fn shown_name(name: &str) -> &str {
    name.trim_end_matches(MARK)
}

/// Gives unnamed expressions the names that PostgreSQL gives them. DataFusion wants names to differ within one list, PostgreSQL does
/// not: a name that is there already gets marks that [`shown_name`] takes off again. In the outermost list, whose names nothing refers
/// to, so does one that may be behind a wildcard; elsewhere the planner decides, which knows the tables.
pub(crate) fn name_items(items: &mut [sql::SelectItem], outermost: bool) {
    let hidden = outermost
        && items
            .iter()
            .any(|item| matches!(item, sql::SelectItem::Wildcard(_) | sql::SelectItem::QualifiedWildcard(..)));
    let column = |expr: &Expr| match expr {
        Expr::Identifier(name) => Some(vec![fold(name)]),
        Expr::CompoundIdentifier(names) => Some(names.iter().map(fold).collect::<Vec<_>>()),
        _ => None,
    };
    let mut columns: Vec<Vec<String>> = Vec::new();
    // Names that were written come first: they stay as they are.
    let mut taken: Vec<String> = items
        .iter()
        .filter_map(|item| match item {
            sql::SelectItem::ExprWithAlias { expr: _, alias } => Some(fold(alias)),
            _ => None,
        })
        .collect();
    for item in items.iter_mut() {
        let sql::SelectItem::UnnamedExpr(expr) = item else { continue };
        let (mut name, repeated) = match column(expr) {
            Some(path) => {
                let last = path.last().cloned().unwrap_or_default();
                // Columns of two tables under one name are told apart by their qualifiers.
                let same = |other: &Vec<String>| {
                    *other == path || (other.last() == Some(&last) && (other.len() == 1 || path.len() == 1))
                };
                let repeated = hidden || columns.iter().any(same) || taken.contains(&last);
                columns.push(path);
                if !repeated {
                    continue;
                }
                (last, true)
            }
            None => (display_name(expr).unwrap_or_else(|| "?column?".to_owned()), hidden),
        };
        if repeated {
            name.push(MARK);
        }
        while taken.contains(&name) || columns.iter().any(|path| path.last() == Some(&name)) {
            name.push(MARK);
        }
        taken.push(name.clone());
        let expr = std::mem::replace(expr, Expr::value(sql::Value::Null));
        *item = sql::SelectItem::ExprWithAlias { expr, alias: Ident::with_quote('"', name) };
    }
}

/// PostgreSQL's name for the column of an expression; `None` is `?column?`.
fn display_name(expr: &Expr) -> Option<String> {
    Some(match expr {
        Expr::Identifier(name) => fold(name),
        Expr::CompoundIdentifier(names) => fold(names.last()?),
        Expr::CompoundFieldAccess { root, access_chain } => {
            let field = access_chain.iter().rev().find_map(|access| match access {
                sql::AccessExpr::Dot(Expr::Identifier(name)) => Some(fold(name)),
                _ => None,
            });
            return field.or_else(|| display_name(root));
        }
        Expr::Nested(inner) | Expr::Collate { expr: inner, collation: _ } => return display_name(inner),
        Expr::Function(function) => function.name.0.last().and_then(|part| part.as_ident()).map(fold)?,
        Expr::Cast { expr, data_type, .. } => match &**expr {
            Expr::Value(_) | Expr::UnaryOp { .. } => type_name(data_type),
            inner => display_name(inner).unwrap_or_else(|| type_name(data_type)),
        },
        Expr::TypedString(sql::TypedString { data_type, .. }) => type_name(data_type),
        Expr::Interval(_) => "interval".to_owned(),
        Expr::Value(value) if matches!(value.value, sql::Value::Boolean(_)) => "bool".to_owned(),
        Expr::Case { else_result, .. } => match else_result.as_deref() {
            Some(expr @ (Expr::Identifier(_) | Expr::CompoundIdentifier(_) | Expr::Function(_))) => display_name(expr)?,
            _ => "case".to_owned(),
        },
        Expr::Exists { .. } => "exists".to_owned(),
        Expr::Array(_) => "array".to_owned(),
        Expr::Tuple(_) => "row".to_owned(),
        Expr::Extract { .. } => "extract".to_owned(),
        Expr::Substring { .. } => "substring".to_owned(),
        Expr::Position { .. } => "position".to_owned(),
        Expr::Overlay { .. } => "overlay".to_owned(),
        Expr::Ceil { .. } => "ceil".to_owned(),
        Expr::Floor { .. } => "floor".to_owned(),
        Expr::AtTimeZone { .. } => "timezone".to_owned(),
        Expr::Trim { trim_where, .. } => match trim_where {
            Some(sql::TrimWhereField::Leading) => "ltrim".to_owned(),
            Some(sql::TrimWhereField::Trailing) => "rtrim".to_owned(),
            Some(sql::TrimWhereField::Both) | None => "btrim".to_owned(),
        },
        Expr::Subquery(query) => match query.body.as_select()?.projection.first()? {
            sql::SelectItem::ExprWithAlias { expr: _, alias } => fold(alias),
            sql::SelectItem::UnnamedExpr(expr) => return display_name(expr),
            _ => return None,
        },
        _ => return None,
    })
}

/// The type's name as PostgreSQL names a column after it.
fn type_name(data_type: &sql::DataType) -> String {
    use crate::types::TypeSpec;
    match TypeSpec::from_sql(data_type) {
        Ok(spec) => match spec {
            TypeSpec::Boolean => "bool".to_owned(),
            TypeSpec::SmallInt => "int2".to_owned(),
            TypeSpec::Integer => "int4".to_owned(),
            TypeSpec::BigInt => "int8".to_owned(),
            TypeSpec::Real => "float4".to_owned(),
            TypeSpec::Double => "float8".to_owned(),
            TypeSpec::Numeric { .. } => "numeric".to_owned(),
            TypeSpec::Varchar(_) => "varchar".to_owned(),
            TypeSpec::Char(_) => "bpchar".to_owned(),
            other => other.name(),
        },
        Err(_) => data_type.to_string().to_lowercase(),
    }
}

/// Shorter chains stay as they were written.
const BALANCE: usize = 32;

/// A long chain `a OR b OR c …` becomes a balanced tree: sqlparser builds it as deep as it is long, and what comes later is recursive.
/// Only for operators where the grouping cannot be seen.
fn balance(expr: &mut Expr) {
    use sql::BinaryOperator as Op;
    let Expr::BinaryOp { op: op @ (Op::And | Op::Or | Op::StringConcat), .. } = &*expr else { return };
    let op = op.clone();
    let mut length = 1;
    let mut here = &*expr;
    while let Expr::BinaryOp { left, op: next, .. } = here
        && *next == op
    {
        length += 1;
        here = left;
    }
    if length < BALANCE {
        return;
    }
    let mut operands = Vec::with_capacity(length);
    let mut rest = std::mem::replace(expr, Expr::value(sql::Value::Null));
    loop {
        match rest {
            Expr::BinaryOp { left, op: next, right } if next == op => {
                operands.push(*right);
                rest = *left;
            }
            other => {
                operands.push(other);
                break;
            }
        }
    }
    operands.reverse();
    if let Some(balanced) = pairwise(operands, &|left, right| binary(left, op.clone(), right)) {
        *expr = balanced;
    }
}

/// The same for `UNION` and `UNION ALL`.
fn balance_set_operations(body: &mut Box<SetExpr>) {
    let SetExpr::SetOperation { op: sql::SetOperator::Union, set_quantifier, .. } = &**body else { return };
    let quantifier = *set_quantifier;
    let is_link =
        |op: &sql::SetOperator, next: &sql::SetQuantifier| matches!(op, sql::SetOperator::Union) && *next == quantifier;
    let mut operands = Vec::new();
    let mut rest = std::mem::replace(
        &mut **body,
        SetExpr::Values(sql::Values { explicit_row: false, value_keyword: false, rows: Vec::new() }),
    );
    loop {
        match rest {
            SetExpr::SetOperation { left, op, set_quantifier, right } if is_link(&op, &set_quantifier) => {
                operands.push(*right);
                rest = *left;
            }
            other => {
                operands.push(other);
                break;
            }
        }
    }
    operands.reverse();
    let link = |left: SetExpr, right: SetExpr| SetExpr::SetOperation {
        left: Box::new(left),
        op: sql::SetOperator::Union,
        set_quantifier: quantifier,
        right: Box::new(right),
    };
    let joined = if operands.len() < BALANCE { operands.into_iter().reduce(link) } else { pairwise(operands, &link) };
    if let Some(joined) = joined {
        **body = joined;
    }
}

/// Joins neighbours until one is left.
fn pairwise<T>(mut items: Vec<T>, join: &dyn Fn(T, T) -> T) -> Option<T> {
    while items.len() > 1 {
        let mut next = Vec::with_capacity(items.len().div_ceil(2));
        let mut rest = items.into_iter();
        while let Some(left) = rest.next() {
            next.push(match rest.next() {
                Some(right) => join(left, right),
                None => left,
            });
        }
        items = next;
    }
    items.pop()
}

/// `FETCH FIRST n ROWS ONLY` is `LIMIT n`.
fn fetch_to_limit(query: &mut Query) {
    let Some(sql::Fetch { with_ties: false, percent: false, quantity }) = &query.fetch else { return };
    let limit = quantity.clone().unwrap_or_else(|| number(1));
    match &mut query.limit_clause {
        None => {
            query.limit_clause =
                Some(sql::LimitClause::LimitOffset { limit: Some(limit), offset: None, limit_by: Vec::new() })
        }
        Some(sql::LimitClause::LimitOffset { limit: slot @ None, offset: _, limit_by: _ }) => *slot = Some(limit),
        // LIMIT and FETCH together: the strict pass refuses it.
        Some(_) => return,
    }
    query.fetch = None;
}

fn number(value: u64) -> Expr {
    Expr::value(sql::Value::Number(value.to_string(), false))
}

/// The name of a function without `pg_catalog`, folded, if it is a plain name.
fn function_name(name: &ObjectName) -> Option<String> {
    match name.0.as_slice() {
        [part] => part.as_ident().map(fold),
        _ => None,
    }
}

/// `generate_series(…)` as `unnest(generate_series(…))`.
fn unnest_call(expr: &Expr) -> Option<Expr> {
    let Expr::Function(function) = expr else { return None };
    if function.over.is_some() {
        return None;
    }
    let name = function_name(&function.name)?;
    let list = list_function(&name)?;
    let mut inner = function.clone();
    inner.name = ObjectName::from(vec![Ident::new(list)]);
    Some(call("unnest", vec![Expr::Function(inner)]))
}

fn rewrite_expr(expr: &mut Expr) -> Result<()> {
    match expr {
        Expr::AtTimeZone { timestamp, time_zone } => {
            let (timestamp, zone) = (take(timestamp), take(time_zone));
            *expr = call("timezone", vec![zone, timestamp]);
        }
        Expr::Interval(interval) => plain_interval(interval)?,
        Expr::SimilarTo { negated, expr: text, pattern, escape_char } => {
            let mut arguments = vec![take(text), take(pattern)];
            arguments.extend(escape_char.take().map(Expr::Value));
            let negated = *negated;
            let similar = call("similar_to", arguments);
            *expr =
                if negated { Expr::UnaryOp { op: sql::UnaryOperator::Not, expr: Box::new(similar) } } else { similar };
        }
        Expr::UnaryOp { op: sql::UnaryOperator::BitwiseNot, expr: inner } => {
            let inner = take(inner);
            let ones = Expr::UnaryOp { op: sql::UnaryOperator::Minus, expr: Box::new(number(1)) };
            *expr = Expr::Nested(Box::new(binary(inner, sql::BinaryOperator::PGBitwiseXor, ones)));
        }
        Expr::Cast {
            kind: sql::CastKind::Cast | sql::CastKind::DoubleColon,
            expr: inner,
            data_type,
            array: false,
            format: None,
        } => {
            if let Some(reader) = reader(inner, data_type) {
                *expr = call(reader, vec![take(inner)]);
            }
        }
        Expr::TypedString(sql::TypedString { data_type, value, uses_odbc_syntax: _ }) => {
            let text = Expr::Value(value.clone());
            if let Some(reader) = reader(&text, data_type) {
                *expr = call(reader, vec![text]);
            }
        }
        // DataFusion's date_part serves whole fields, and knows how to prune by the year; fields with fractions are ours.
        Expr::Extract { field, syntax: sql::ExtractSyntax::From, expr: inner } if has_fraction(field) => {
            let name = field.to_string().trim_matches(['\'', '"']).to_lowercase();
            let inner = take(inner);
            *expr = call("date_part", vec![Expr::value(sql::Value::SingleQuotedString(name)), inner]);
        }
        Expr::Substring { expr: text, substring_from: Some(from), substring_for, special: _, shorthand: _ }
            if is_text(from) =>
        {
            let mut arguments = vec![take(text), take(from)];
            arguments.extend(substring_for.as_mut().map(take));
            *expr = call("substring_regex", arguments);
        }
        Expr::Collate { expr: inner, collation } if is_byte_order(collation) => *expr = take(inner),
        Expr::Function(function) => {
            strip_catalog(&mut function.name);
            pattern_substring(function);
            if let sql::FunctionArguments::Subquery(query) = &mut function.args
                && function_name(&function.name).as_deref() == Some("array")
            {
                let query = std::mem::replace(&mut **query, empty_query());
                *expr = array_of_query(query);
            }
        }
        Expr::BinaryOp { left, op, right } => {
            plain_operator(op);
            if let (Expr::Tuple(left), Expr::Tuple(right)) = (&**left, &**right)
                && let Some(compared) = compare_rows(left, op, right)?
            {
                *expr = compared;
            }
        }
        Expr::InList { expr: needle, list, negated } => {
            if let Expr::Tuple(needle) = &**needle
                && list.iter().all(|item| matches!(item, Expr::Tuple(_)))
            {
                let mut any: Option<Expr> = None;
                for item in list.iter() {
                    let Expr::Tuple(item) = item else { continue };
                    if let Some(equal) = compare_rows(needle, &sql::BinaryOperator::Eq, item)? {
                        any = Some(match any {
                            None => equal,
                            Some(before) => binary(before, sql::BinaryOperator::Or, equal),
                        });
                    }
                }
                if let Some(any) = any {
                    let any = Expr::Nested(Box::new(any));
                    *expr =
                        if *negated { Expr::UnaryOp { op: sql::UnaryOperator::Not, expr: Box::new(any) } } else { any };
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// `SELECT DISTINCT` sorts by what it selects: an expression of the list stands for its column.
fn sort_by_names(query: &mut Query) {
    let (SetExpr::Select(select), Some(sql::OrderBy { kind: sql::OrderByKind::Expressions(keys), interpolate: _ })) =
        (query.body.as_ref(), &mut query.order_by)
    else {
        return;
    };
    if !matches!(select.distinct, Some(sql::Distinct::Distinct)) {
        return;
    }
    for key in keys.iter_mut().filter(|key| !matches!(key.expr, Expr::Identifier(_) | Expr::Value(_))) {
        let text = key.expr.to_string();
        let named = select.projection.iter().find_map(|item| match item {
            sql::SelectItem::ExprWithAlias { expr, alias } if expr.to_string() == text => Some(alias),
            _ => None,
        });
        if let Some(alias) = named {
            key.expr = Expr::Identifier(alias.clone());
        }
    }
}

/// What one row of `VALUES` says about a column's type holds for its other rows.
fn align_rows(body: &mut SetExpr) {
    let SetExpr::Values(values) = body else { return };
    let width = values.rows.first().map_or(0, |row| row.content.len());
    if values.rows.len() < 2 {
        return;
    }
    for column in 0..width {
        let Some(reader) = values.rows.iter().find_map(|row| row.content.get(column).and_then(reader_of)) else {
            continue;
        };
        for cell in values.rows.iter_mut().filter_map(|row| row.content.get_mut(column)) {
            if !super::is_default(cell) && reader_of(cell) != Some(reader) {
                let inner = std::mem::replace(cell, Expr::value(sql::Value::Null));
                *cell = call(reader, vec![inner]);
            }
        }
    }
}

/// The reader behind a cell that is certainly a UUID or JSON.
fn reader_of(cell: &Expr) -> Option<&'static str> {
    let Expr::Function(function) = cell else { return None };
    Some(match function_name(&function.name)?.as_str() {
        "uuid_in" | "gen_random_uuid" | "uuidv4" | "uuidv7" => "uuid_in",
        "json_in" | "to_json" | "json_build_object" | "json_build_array" | "json_object" | "row_to_json" => "json_in",
        "jsonb_in" | "to_jsonb" | "jsonb_build_object" | "jsonb_build_array" | "jsonb_object" | "jsonb_set" => {
            "jsonb_in"
        }
        _ => return None,
    })
}

/// The function that reads a value as a type whose cast DataFusion would strip of what makes it that type (uuid, json), or whose
/// texts it would read in fewer forms (times).
fn reader(value: &Expr, data_type: &sql::DataType) -> Option<&'static str> {
    use crate::types::TypeSpec;
    match TypeSpec::from_sql(data_type).ok()? {
        TypeSpec::Uuid => Some("uuid_in"),
        TypeSpec::Json => Some("json_in"),
        TypeSpec::Jsonb => Some("jsonb_in"),
        TypeSpec::Date if is_text(value) => Some("date_in"),
        TypeSpec::Time if is_text(value) => Some("time_in"),
        TypeSpec::Timestamp if is_text(value) => Some("timestamp_in"),
        TypeSpec::TimestampTz if is_text(value) => Some("timestamptz_in"),
        TypeSpec::Interval if is_text(value) => Some("interval_in"),
        _ => None,
    }
}

fn is_text(expr: &Expr) -> bool {
    matches!(expr, Expr::Value(value) if matches!(value.value, sql::Value::SingleQuotedString(_) | sql::Value::DollarQuotedString(_) | sql::Value::EscapedStringLiteral(_)))
}

/// Fields that DataFusion lacks, cuts to whole numbers, or counts differently for intervals.
fn has_fraction(field: &sql::DateTimeField) -> bool {
    let name = field.to_string().trim_matches(['\'', '"']).to_lowercase();
    !matches!(
        name.as_str(),
        "year" | "month" | "quarter" | "week" | "day" | "dow" | "isodow" | "doy" | "hour" | "minute" | "isoyear"
    )
}

/// The text of an interval in words that DataFusion reads the same way.
fn plain_interval(interval: &mut sql::Interval) -> Result<()> {
    let text = match &*interval.value {
        Expr::Value(value) => match value.value.clone() {
            sql::Value::Number(number, _) => number,
            value => match value.into_string() {
                Some(text) => text,
                None => return Ok(()),
            },
        },
        _ => return Ok(()),
    };
    if interval.last_field.is_some() || interval.leading_precision.is_some() {
        // The strict pass refuses these by name.
        return Ok(());
    }
    let text = match interval.leading_field.take() {
        Some(field) => format!("{text} {field}"),
        None => text,
    };
    let plain = crate::functions::plain_interval(&text)?;
    *interval.value = Expr::value(sql::Value::SingleQuotedString(plain));
    Ok(())
}

fn take(expr: &mut Box<Expr>) -> Expr {
    std::mem::replace(&mut **expr, Expr::value(sql::Value::Null))
}

/// `substring(s, 'pattern')`.
fn pattern_substring(function: &mut sql::Function) {
    if !matches!(function_name(&function.name).as_deref(), Some("substring")) {
        return;
    }
    let sql::FunctionArguments::List(list) = &function.args else { return };
    if matches!(list.args.get(1), Some(sql::FunctionArg::Unnamed(sql::FunctionArgExpr::Expr(pattern))) if is_text(pattern))
    {
        function.name = ObjectName::from(vec![Ident::new("substring_regex")]);
    }
}

/// `pg_catalog.name` is `name`.
fn strip_catalog(name: &mut ObjectName) {
    if let [schema, _] = name.0.as_slice()
        && schema.as_ident().is_some_and(|schema| fold(schema) == "pg_catalog")
    {
        name.0.remove(0);
    }
}

/// `OPERATOR(pg_catalog.~)` is `~`.
fn plain_operator(op: &mut sql::BinaryOperator) {
    use sql::BinaryOperator as Op;
    let sql::BinaryOperator::PGCustomBinaryOperator(parts) = op else { return };
    let text = match parts.as_slice() {
        [text] => text.as_str(),
        [schema, text] if schema.eq_ignore_ascii_case("pg_catalog") => text.as_str(),
        _ => return,
    };
    *op = match text {
        "=" => Op::Eq,
        "<>" => Op::NotEq,
        "<" => Op::Lt,
        ">" => Op::Gt,
        "<=" => Op::LtEq,
        ">=" => Op::GtEq,
        "+" => Op::Plus,
        "-" => Op::Minus,
        "*" => Op::Multiply,
        "/" => Op::Divide,
        "%" => Op::Modulo,
        "||" => Op::StringConcat,
        "~" => Op::PGRegexMatch,
        "~*" => Op::PGRegexIMatch,
        "!~" => Op::PGRegexNotMatch,
        "!~*" => Op::PGRegexNotIMatch,
        "~~" => Op::PGLikeMatch,
        "~~*" => Op::PGILikeMatch,
        "!~~" => Op::PGNotLikeMatch,
        "!~~*" => Op::PGNotILikeMatch,
        _ => return,
    };
}

fn binary(left: Expr, op: sql::BinaryOperator, right: Expr) -> Expr {
    Expr::BinaryOp { left: Box::new(left), op, right: Box::new(right) }
}

/// A comparison of two rows, column by column.
fn compare_rows(left: &[Expr], op: &sql::BinaryOperator, right: &[Expr]) -> Result<Option<Expr>> {
    use sql::BinaryOperator as Op;
    if !matches!(op, Op::Eq | Op::NotEq | Op::Lt | Op::LtEq | Op::Gt | Op::GtEq) {
        return Ok(None);
    }
    if left.len() != right.len() {
        return Err(Error::syntax(format!(
            "syntax error: rows of {} and {} columns are compared",
            left.len(),
            right.len()
        )));
    }
    let pairs: Vec<(&Expr, &Expr)> = left.iter().zip(right).collect();
    let Some((last, front)) = pairs.split_last() else { return Ok(None) };
    let compared = match op {
        Op::Eq | Op::NotEq => {
            let join = if matches!(op, Op::Eq) { Op::And } else { Op::Or };
            let mut all = None;
            for (left, right) in &pairs {
                let one = binary((*left).clone(), op.clone(), (*right).clone());
                all = Some(match all {
                    None => one,
                    Some(before) => binary(before, join.clone(), one),
                });
            }
            all
        }
        _ => {
            // a < c OR (a = c AND (b < d …)): the last column uses the operator itself, the others its strict form.
            let strict = match op {
                Op::Lt | Op::LtEq => Op::Lt,
                _ => Op::Gt,
            };
            let mut tail = binary(last.0.clone(), op.clone(), last.1.clone());
            for (left, right) in front.iter().rev() {
                let equal = binary((*left).clone(), Op::Eq, (*right).clone());
                let rest = Expr::Nested(Box::new(binary(equal, Op::And, Expr::Nested(Box::new(tail)))));
                tail = binary(binary((*left).clone(), strict.clone(), (*right).clone()), Op::Or, rest);
            }
            Some(tail)
        }
    };
    Ok(compared.map(|compared| Expr::Nested(Box::new(compared))))
}

/// `ARRAY(query)`: the query's one column as an array, in the query's order; an empty array when it has no rows.
fn array_of_query(mut query: Query) -> Expr {
    const ROWS: &str = "_rows";
    const VALUE: &str = "_value";
    // The order moves into the aggregate: DataFusion drops the order of a subquery.
    let order = match (&mut query.order_by, &query.limit_clause) {
        (Some(sql::OrderBy { kind: sql::OrderByKind::Expressions(order), interpolate: None }), None) => {
            only_output(&query.body, order)
        }
        _ => None,
    };
    if order.is_some() {
        query.order_by = None;
    }
    let value = Expr::CompoundIdentifier(vec![Ident::new(ROWS), Ident::new(VALUE)]);
    let clauses = match order {
        Some(options) => vec![sql::FunctionArgumentClause::OrderBy(vec![sql::OrderByExpr {
            expr: value.clone(),
            options,
            with_fill: None,
        }])],
        None => Vec::new(),
    };
    let mut aggregate = call("array_agg", vec![value]);
    if let Expr::Function(function) = &mut aggregate
        && let sql::FunctionArguments::List(list) = &mut function.args
    {
        list.clauses = clauses;
    }
    let alias = sql::TableAlias {
        explicit: true,
        name: Ident::new(ROWS),
        columns: vec![sql::TableAliasColumnDef { name: Ident::new(VALUE), data_type: None }],
        at: None,
    };
    let from = TableFactor::Derived { lateral: false, subquery: Box::new(query), alias: Some(alias), sample: None };
    let subquery = select_from(vec![sql::SelectItem::UnnamedExpr(aggregate)], from);
    call("array_or_empty", vec![Expr::Subquery(Box::new(subquery))])
}

/// The options of an order that is by the query's only output column.
fn only_output(body: &SetExpr, order: &[sql::OrderByExpr]) -> Option<sql::OrderByOptions> {
    let SetExpr::Select(select) = body else { return None };
    let [sql::OrderByExpr { expr, options, with_fill: None }] = order else { return None };
    let same = match select.projection.as_slice() {
        [sql::SelectItem::UnnamedExpr(output)] => output == expr,
        [sql::SelectItem::ExprWithAlias { expr: output, alias }] => {
            output == expr || matches!(expr, Expr::Identifier(name) if fold(name) == fold(alias))
        }
        _ => false,
    };
    let first =
        matches!(expr, Expr::Value(value) if matches!(&value.value, sql::Value::Number(text, _) if text == "1"));
    (same || first).then_some(*options)
}

/// `SELECT items FROM table`.
fn select_from(projection: Vec<sql::SelectItem>, relation: TableFactor) -> Query {
    let select = sql::Select {
        select_token: sql::helpers::attached_token::AttachedToken::empty(),
        optimizer_hints: Vec::new(),
        distinct: None,
        select_modifiers: None,
        top: None,
        top_before_distinct: false,
        projection,
        exclude: None,
        into: None,
        from: vec![sql::TableWithJoins { relation, joins: Vec::new() }],
        lateral_views: Vec::new(),
        prewhere: None,
        selection: None,
        connect_by: Vec::new(),
        group_by: sql::GroupByExpr::Expressions(Vec::new(), Vec::new()),
        cluster_by: Vec::new(),
        distribute_by: Vec::new(),
        sort_by: Vec::new(),
        having: None,
        named_window: Vec::new(),
        qualify: None,
        window_before_qualify: false,
        value_table_mode: None,
        flavor: sql::SelectFlavor::Standard,
    };
    Query { body: Box::new(SetExpr::Select(Box::new(select))), ..empty_query() }
}

/// Functions in `FROM`: those that return sets become `UNNEST` of their list, except `generate_series`, which streams; the one column
/// is named after the function or its alias; `WITH ORDINALITY` becomes a numbered subquery.
fn table_function(factor: &mut TableFactor) {
    let ordinality = match factor {
        TableFactor::Table { name, alias, args: Some(args), with_ordinality, .. } => {
            strip_catalog(name);
            let Some(function) = function_name(name) else { return };
            let ordinality = std::mem::take(with_ordinality);
            if function == "generate_series" {
                name_column(alias, &function);
            } else if let Some(list) = list_function(&function) {
                name_column(alias, &function);
                let mut inner = call(list, Vec::new());
                if let Expr::Function(function) = &mut inner
                    && let sql::FunctionArguments::List(list) = &mut function.args
                {
                    list.args = std::mem::take(&mut args.args);
                }
                let alias = alias.take();
                *factor = TableFactor::UNNEST {
                    alias,
                    array_exprs: vec![inner],
                    with_offset: false,
                    with_offset_alias: None,
                    with_ordinality: false,
                };
            } else if ordinality && alias.is_none() {
                name_column(alias, &function);
            }
            ordinality
        }
        TableFactor::UNNEST { alias, array_exprs, with_offset: _, with_offset_alias: _, with_ordinality } => {
            if array_exprs.len() == 1 {
                name_column(alias, "unnest");
            }
            std::mem::take(with_ordinality)
        }
        _ => false,
    };
    if ordinality {
        number_rows(factor);
    }
}

/// Gives the only column of a table function the name that PostgreSQL gives it.
fn name_column(alias: &mut Option<sql::TableAlias>, function: &str) {
    let alias = alias.get_or_insert_with(|| sql::TableAlias {
        explicit: true,
        name: Ident::new(function),
        columns: Vec::new(),
        at: None,
    });
    if alias.columns.is_empty() {
        alias.columns.push(sql::TableAliasColumnDef { name: alias.name.clone(), data_type: None });
    }
}

/// `f(…) WITH ORDINALITY AS a(x, n)` as `(SELECT *, row_number() OVER () AS ordinality FROM f(…) AS a(x)) AS a(x, n)`.
fn number_rows(factor: &mut TableFactor) {
    let (TableFactor::Table { alias, .. } | TableFactor::UNNEST { alias, .. }) = factor else { return };
    let outer = alias.clone();
    if let Some(alias) = alias
        && alias.columns.len() > 1
    {
        alias.columns.pop();
    }
    let mut count = call("row_number", Vec::new());
    if let Expr::Function(function) = &mut count {
        function.over = Some(sql::WindowType::WindowSpec(sql::WindowSpec {
            window_name: None,
            partition_by: Vec::new(),
            order_by: Vec::new(),
            window_frame: None,
        }));
    }
    let items = vec![
        sql::SelectItem::Wildcard(sql::WildcardAdditionalOptions::default()),
        sql::SelectItem::ExprWithAlias { expr: count, alias: Ident::new("ordinality") },
    ];
    let outer = outer.map(|mut outer| {
        if outer.columns.len() == 1 {
            outer.columns.push(sql::TableAliasColumnDef { name: Ident::new("ordinality"), data_type: None });
        }
        outer
    });
    let inner = std::mem::replace(
        factor,
        TableFactor::Derived { lateral: false, subquery: Box::new(empty_query()), alias: outer, sample: None },
    );
    if let TableFactor::Derived { subquery, .. } = factor {
        **subquery = select_from(items, inner);
    }
}

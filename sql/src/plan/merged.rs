//! The columns that `USING` and `NATURAL` merge.
//!
//! A merged column is the left side's in an inner or a left join, the right side's in a right join, and whichever is there in a full
//! join. DataFusion takes the left side's in any case, and has it in `*` wherever it happens to stand. Here such joins get an `ON`, and
//! the column's name becomes what it stands for; `*` names the merged columns first, once.
//!
//! | written | becomes |
//! |---|---|
//! | `SELECT id FROM a FULL JOIN b USING (id)` | `SELECT COALESCE(a.id, b.id) AS id FROM a FULL JOIN b ON a.id = b.id` |
//! | `SELECT id FROM a RIGHT JOIN b USING (id)` | `SELECT b.id AS id FROM a RIGHT JOIN b ON a.id = b.id` |
//! | `SELECT * FROM a JOIN b USING (id)` | `SELECT a.id, a.x, b.y FROM a JOIN b USING (id)` |
//!
//! Names inside subqueries keep their meaning: a merged column of an outer query has to be named there with its table.

use std::collections::HashSet;
use std::ops::ControlFlow;

use sqlparser::ast::{self, Expr, JoinConstraint, JoinOperator, SelectItem, TableFactor, VisitMut, VisitorMut};

use super::{fold, identifier, qualified};
use crate::{Error, Result};

/// The columns of a table by its name; `None` for anything else.
type Visible<'a> = dyn Fn(&ast::ObjectName) -> Option<Vec<String>> + 'a;

/// Gives every merged column of a query its meaning.
pub(super) fn prepare(query: &mut ast::Query, visible: &Visible<'_>) -> Result<()> {
    let mut merge = Merge { visible, defined: HashSet::new(), error: None };
    let _ = query.visit(&mut merge);
    merge.error.map_or(Ok(()), Err)
}

struct Merge<'a> {
    visible: &'a Visible<'a>,
    /// Names that WITH defines: their columns are not looked up.
    defined: HashSet<String>,
    error: Option<Error>,
}

/// What one side of a join has.
#[derive(Default)]
struct Side {
    /// Name and columns, if they are known.
    relations: Vec<(ast::Ident, Option<Vec<String>>)>,
    /// Merged columns and what they stand for, in order.
    merged: Vec<(String, Expr)>,
}

impl VisitorMut for Merge<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &mut ast::Query) -> ControlFlow<()> {
        if let Some(with) = &query.with {
            self.defined.extend(with.cte_tables.iter().map(|cte| fold(&cte.alias.name)));
        }
        if let ast::SetExpr::Select(select) = query.body.as_mut() {
            match self.select(select) {
                Ok(merged) => {
                    if let Some(order) = &mut query.order_by {
                        order_by(order, select, &merged);
                    }
                }
                Err(error) => return self.fail(error),
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut ast::Select) -> ControlFlow<()> {
        match self.select(select) {
            Ok(_) => ControlFlow::Continue(()),
            Err(error) => self.fail(error),
        }
    }
}

impl Merge<'_> {
    fn fail(&mut self, error: Error) -> ControlFlow<()> {
        self.error = Some(error);
        ControlFlow::Break(())
    }

    /// Rewrites one SELECT; the merged columns whose names were replaced.
    fn select(&self, select: &mut ast::Select) -> Result<Vec<(String, Expr)>> {
        if !select.from.iter().any(merges) {
            return Ok(Vec::new());
        }
        let stars = select.projection.iter().any(|item| matches!(item, SelectItem::Wildcard(_)));
        let outer = select.from.iter().any(pads_left);
        if !outer && !stars {
            return Ok(Vec::new());
        }
        let mut sides = Vec::with_capacity(select.from.len());
        for from in &mut select.from {
            match self.side(from, outer)? {
                Some(side) => sides.push(side),
                // Nothing is known that would help, and DataFusion's meaning is right for these joins but for the order of `*`.
                None => return Ok(Vec::new()),
            }
        }
        if stars {
            expand(&mut select.projection, &sides);
        }
        if !outer {
            return Ok(Vec::new());
        }
        let merged: Vec<(String, Expr)> = sides.into_iter().flat_map(|side| side.merged).collect();
        for item in &mut select.projection {
            if let SelectItem::UnnamedExpr(Expr::Identifier(name)) = item
                && let Some((column, expr)) = merged.iter().find(|(column, _)| *column == fold(name))
            {
                *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: identifier(column) };
            }
        }
        let mut replace = Replace { merged: &merged, depth: 0 };
        for from in &mut select.from {
            for join in &mut from.joins {
                let _ = join.join_operator.visit(&mut replace);
            }
        }
        let _ = select.distinct.visit(&mut replace);
        let _ = select.projection.visit(&mut replace);
        let _ = select.selection.visit(&mut replace);
        let _ = select.group_by.visit(&mut replace);
        let _ = select.having.visit(&mut replace);
        let _ = select.named_window.visit(&mut replace);
        Ok(merged)
    }

    /// What an item of FROM has. With `outer`, its joins get their `ON`.
    fn side(&self, from: &mut ast::TableWithJoins, outer: bool) -> Result<Option<Side>> {
        let Some(mut left) = self.factor(&mut from.relation, outer)? else {
            return Ok(None);
        };
        for join in &mut from.joins {
            let Some(right) = self.factor(&mut join.relation, outer)? else {
                return if outer { Err(unnamed()) } else { Ok(None) };
            };
            let kind = kind(&join.join_operator);
            let Some(constraint) = constraint(&mut join.join_operator) else {
                left.relations.extend(right.relations);
                left.merged.extend(right.merged);
                continue;
            };
            let columns = match constraint {
                JoinConstraint::Using(names) => {
                    names.iter().filter_map(|name| name.0.last().and_then(|part| part.as_ident()).map(fold)).collect()
                }
                JoinConstraint::Natural => match (left.columns(), right.columns()) {
                    (Some(left), Some(right)) => left.into_iter().filter(|column| right.contains(column)).collect(),
                    _ if outer => {
                        return Err(Error::unsupported("NATURAL beside a subquery in a right or full join")
                            .with_hint("write USING"));
                    }
                    _ => return Ok(None),
                },
                _ => Vec::new(),
            };
            let mut conditions = None;
            let mut merged = Vec::with_capacity(columns.len());
            for column in columns {
                let (Some(this), Some(that)) = (left.find(&column), right.find(&column)) else {
                    if outer {
                        return Err(Error::unsupported(format!("USING (\"{column}\") where its table cannot be told"))
                            .with_hint("write ON"));
                    }
                    return Ok(None);
                };
                let equal = Expr::BinaryOp {
                    left: Box::new(this.clone()),
                    op: ast::BinaryOperator::Eq,
                    right: Box::new(that.clone()),
                };
                conditions = Some(match conditions {
                    None => equal,
                    Some(all) => {
                        Expr::BinaryOp { left: Box::new(all), op: ast::BinaryOperator::And, right: Box::new(equal) }
                    }
                });
                merged.push((
                    column,
                    match kind {
                        Kind::Right => that,
                        Kind::Full => super::parse_expr(&format!("COALESCE({this}, {that})"))?,
                        Kind::Left => this,
                    },
                ));
            }
            if outer && !matches!(constraint, JoinConstraint::On(_) | JoinConstraint::None) {
                *constraint = match conditions {
                    Some(conditions) => JoinConstraint::On(conditions),
                    None => JoinConstraint::On(super::parse_expr("true")?),
                };
            }
            let is_new = |(column, _): &(String, Expr)| !merged.iter().any(|(known, _)| known == column);
            let rest: Vec<_> = left.merged.into_iter().chain(right.merged).filter(is_new).collect();
            left.merged = merged;
            left.merged.extend(rest);
            left.relations.extend(right.relations);
        }
        Ok(Some(left))
    }

    fn factor(&self, factor: &mut TableFactor, outer: bool) -> Result<Option<Side>> {
        let (name, columns) = match factor {
            TableFactor::NestedJoin { table_with_joins, alias: None } => return self.side(table_with_joins, outer),
            TableFactor::Table { name, alias, args: None, .. } => {
                let own = alias
                    .as_ref()
                    .map(|alias| &alias.name)
                    .or_else(|| name.0.last().and_then(|part| part.as_ident()))
                    .cloned();
                let defined = matches!(name.0.as_slice(), [part] if part.as_ident().is_some_and(|name| self.defined.contains(&fold(name))));
                let renamed = alias.as_ref().is_some_and(|alias| !alias.columns.is_empty());
                (own, if defined || renamed { None } else { (self.visible)(name) })
            }
            TableFactor::Table { alias, .. }
            | TableFactor::Derived { alias, .. }
            | TableFactor::Function { alias, .. }
            | TableFactor::UNNEST { alias, .. } => (alias.as_ref().map(|alias| alias.name.clone()), None),
            _ => (None, None),
        };
        Ok(name.map(|name| Side { relations: vec![(identifier(&fold(&name)), columns)], merged: Vec::new() }))
    }
}

fn unnamed() -> Error {
    Error::unsupported("USING beside a relation without a name").with_hint("give it an alias")
}

impl Side {
    /// All columns, if they are known.
    fn columns(&self) -> Option<Vec<String>> {
        let mut all: Vec<String> = self.merged.iter().map(|(column, _)| column.clone()).collect();
        for (_, columns) in &self.relations {
            for column in columns.as_ref()? {
                if !all.contains(column) {
                    all.push(column.clone());
                }
            }
        }
        Some(all)
    }

    /// What a column's name stands for here, if that can be told.
    fn find(&self, column: &str) -> Option<Expr> {
        if let Some((_, expr)) = self.merged.iter().find(|(name, _)| name == column) {
            return Some(expr.clone());
        }
        let has = |columns: &Option<Vec<String>>| {
            columns.as_ref().is_none_or(|columns| columns.iter().any(|name| name == column))
        };
        let mut found = self.relations.iter().filter(|(_, columns)| has(columns));
        match (found.next(), found.next()) {
            (Some((relation, _)), None) => Some(qualified(relation, column)),
            _ => None,
        }
    }
}

/// How a join takes its merged columns.
#[derive(Clone, Copy)]
enum Kind {
    Left,
    Right,
    Full,
}

fn kind(join: &JoinOperator) -> Kind {
    match join {
        JoinOperator::Right(_) | JoinOperator::RightOuter(_) => Kind::Right,
        JoinOperator::FullOuter(_) => Kind::Full,
        _ => Kind::Left,
    }
}

fn constraint(join: &mut JoinOperator) -> Option<&mut JoinConstraint> {
    use JoinOperator as J;
    match join {
        J::Join(it)
        | J::Inner(it)
        | J::Left(it)
        | J::LeftOuter(it)
        | J::Right(it)
        | J::RightOuter(it)
        | J::FullOuter(it) => Some(it),
        _ => None,
    }
}

fn is_merging(join: &JoinOperator) -> bool {
    use JoinOperator as J;
    match join {
        J::Join(it)
        | J::Inner(it)
        | J::Left(it)
        | J::LeftOuter(it)
        | J::Right(it)
        | J::RightOuter(it)
        | J::FullOuter(it) => {
            matches!(it, JoinConstraint::Using(_) | JoinConstraint::Natural)
        }
        _ => false,
    }
}

/// Whether any join of an item merges columns.
fn merges(from: &ast::TableWithJoins) -> bool {
    any_join(from, &is_merging)
}

/// Whether a merged column may be missing on the left side.
fn pads_left(from: &ast::TableWithJoins) -> bool {
    any_join(from, &|join| is_merging(join) && !matches!(kind(join), Kind::Left))
}

fn any_join(from: &ast::TableWithJoins, test: &dyn Fn(&JoinOperator) -> bool) -> bool {
    let nested = |factor: &TableFactor| match factor {
        TableFactor::NestedJoin { table_with_joins, alias: None } => any_join(table_with_joins, test),
        _ => false,
    };
    nested(&from.relation) || from.joins.iter().any(|join| test(&join.join_operator) || nested(&join.relation))
}

/// Writes `*` out: the merged columns, then the others of each relation.
fn expand(projection: &mut Vec<SelectItem>, sides: &[Side]) {
    let mut items = Vec::with_capacity(projection.len());
    for item in std::mem::take(projection) {
        let SelectItem::Wildcard(options) = &item else {
            items.push(item);
            continue;
        };
        if *options != ast::WildcardAdditionalOptions::default() {
            items.push(item);
            continue;
        }
        for side in sides {
            for (column, expr) in &side.merged {
                items.push(match expr {
                    Expr::CompoundIdentifier(_) => SelectItem::UnnamedExpr(expr.clone()),
                    other => SelectItem::ExprWithAlias { expr: other.clone(), alias: identifier(column) },
                });
            }
            for (relation, columns) in &side.relations {
                let name =
                    ast::SelectItemQualifiedWildcardKind::ObjectName(ast::ObjectName::from(vec![relation.clone()]));
                match columns {
                    Some(columns) => items.extend(
                        columns
                            .iter()
                            .filter(|column| !side.merged.iter().any(|(merged, _)| merged == *column))
                            .map(|column| SelectItem::UnnamedExpr(qualified(relation, column))),
                    ),
                    None => {
                        let merged = side
                            .merged
                            .iter()
                            .map(|(column, _)| ast::ObjectName::from(vec![identifier(column)]))
                            .collect();
                        let options = ast::WildcardAdditionalOptions {
                            opt_exclude: Some(ast::ExcludeSelectItem::Multiple(merged)),
                            ..ast::WildcardAdditionalOptions::default()
                        };
                        items.push(SelectItem::QualifiedWildcard(name, options));
                    }
                }
            }
        }
    }
    *projection = items;
}

/// Replaces names of merged columns, but not inside subqueries.
struct Replace<'a> {
    merged: &'a [(String, Expr)],
    depth: usize,
}

impl VisitorMut for Replace<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, _: &mut ast::Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &mut ast::Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        if self.depth == 0
            && let Expr::Identifier(name) = expr
            && let Some((_, meaning)) = self.merged.iter().find(|(column, _)| *column == fold(name))
        {
            *expr = meaning.clone();
        }
        ControlFlow::Continue(())
    }
}

/// A name alone in ORDER BY is that of an output column first.
fn order_by(order: &mut ast::OrderBy, select: &ast::Select, merged: &[(String, Expr)]) {
    let ast::OrderByKind::Expressions(all) = &mut order.kind else { return };
    let outputs: Vec<String> = select
        .projection
        .iter()
        .filter_map(|item| match item {
            SelectItem::ExprWithAlias { alias, .. } => Some(fold(alias)),
            SelectItem::UnnamedExpr(Expr::CompoundIdentifier(parts)) => parts.last().map(fold),
            _ => None,
        })
        .collect();
    for by in all {
        if matches!(&by.expr, Expr::Identifier(name) if outputs.contains(&fold(name))) {
            continue;
        }
        let _ = by.visit(&mut Replace { merged, depth: 0 });
    }
}

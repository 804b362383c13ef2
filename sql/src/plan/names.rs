//! Output names: DataFusion wants them unique, SQL does not.
//!
//! A name that a select list gives twice gets an invisible mark the second time, which [`strip`] takes off again where results
//! leave the engine. A recursive query's column names are written into its first branch, because DataFusion resolves the
//! recursion before it applies them. Numbers with an exponent that no decimal holds become doubles.

use std::collections::HashSet;
use std::ops::ControlFlow;

use sqlparser::ast::{self, SelectItem, VisitMut, VisitorMut};

use super::{fold, identifier};
use crate::parse::MARK;
pub(crate) use crate::parse::shown_name as strip;

/// Makes output names unique and names recursive columns. `visible` lists the columns of a table.
pub(super) fn prepare(query: &mut ast::Query, visible: &dyn Fn(&ast::ObjectName) -> Option<Vec<String>>) {
    let mut names = Names { visible, defined: HashSet::new() };
    let _ = query.visit(&mut names);
}

struct Names<'a> {
    visible: &'a dyn Fn(&ast::ObjectName) -> Option<Vec<String>>,
    /// Names that WITH defines: their columns are not looked up.
    defined: HashSet<String>,
}

/// Whether a number with an exponent is beyond what a decimal holds.
fn is_beyond_decimals(number: &str) -> bool {
    let Some((mantissa, exponent)) = number.split_once(['e', 'E']) else {
        return false;
    };
    let Ok(exponent) = exponent.parse::<i64>() else {
        return true;
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let before = i64::try_from(whole.len()).unwrap_or(i64::MAX).saturating_add(exponent);
    let after = i64::try_from(fraction.len()).unwrap_or(i64::MAX).saturating_sub(exponent);
    before.max(0) + after.max(0) > 38
}

impl VisitorMut for Names<'_> {
    type Break = ();

    fn post_visit_expr(&mut self, expr: &mut ast::Expr) -> ControlFlow<()> {
        if let ast::Expr::Value(ast::ValueWithSpan { value: ast::Value::Number(number, _), .. }) = expr {
            if is_beyond_decimals(number) {
                if let Ok(double) = super::parse_expr(&format!("CAST('{number}' AS double precision)")) {
                    *expr = double;
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &mut ast::Query) -> ControlFlow<()> {
        if let Some(with) = &mut query.with {
            let recursive = with.recursive;
            for cte in &mut with.cte_tables {
                self.defined.insert(fold(&cte.alias.name));
                if recursive && !cte.alias.columns.is_empty() {
                    let columns: Vec<ast::Ident> = cte.alias.columns.iter().map(|column| column.name.clone()).collect();
                    name_first_branch(&mut cte.query.body, &columns);
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &mut ast::Select) -> ControlFlow<()> {
        let starred = |item: &SelectItem| matches!(item, SelectItem::Wildcard(_) | SelectItem::QualifiedWildcard(..));
        if select.projection.len() < 2 {
            return ControlFlow::Continue(());
        }
        let mut taken: HashSet<String> = HashSet::new();
        if select.projection.iter().any(starred) {
            for from in &select.from {
                for factor in std::iter::once(&from.relation).chain(from.joins.iter().map(|join| &join.relation)) {
                    if let ast::TableFactor::Table { name, args: None, alias, .. } = factor {
                        let called = alias
                            .as_ref()
                            .map(|alias| &alias.name)
                            .or_else(|| name.0.last().and_then(|part| part.as_ident()));
                        if !select.projection.iter().any(|item| is_star_of(item, called)) {
                            continue;
                        }
                        let cte = name.0.len() == 1
                            && name.0[0].as_ident().is_some_and(|ident| self.defined.contains(&fold(ident)));
                        if !cte {
                            taken.extend((self.visible)(name).unwrap_or_default());
                        }
                    }
                }
            }
        }
        let mut seen: HashSet<String> = HashSet::new();
        for item in &mut select.projection {
            let (name, expr) = match item {
                SelectItem::UnnamedExpr(expr) => {
                    let (shown, known) = match &*expr {
                        ast::Expr::Identifier(ident) => (fold(ident), true),
                        // Columns of two tables under one name are told apart by their qualifiers.
                        ast::Expr::CompoundIdentifier(parts) => match parts.last() {
                            Some(last) => (fold(last), true),
                            None => continue,
                        },
                        other => (other.to_string(), false),
                    };
                    let key = if known && matches!(expr, ast::Expr::CompoundIdentifier(_)) {
                        expr.to_string().to_lowercase()
                    } else {
                        shown.clone()
                    };
                    if !(known && taken.contains(&shown)) && seen.insert(key) {
                        continue;
                    }
                    (shown, expr.clone())
                }
                SelectItem::ExprWithAlias { expr, alias } => {
                    if !taken.contains(&fold(alias)) && seen.insert(fold(alias)) {
                        continue;
                    }
                    (fold(alias), expr.clone())
                }
                _ => continue,
            };
            let mut unique = name;
            loop {
                unique.push(MARK);
                if seen.insert(unique.clone()) {
                    break;
                }
            }
            *item = SelectItem::ExprWithAlias { expr, alias: identifier(&unique) };
        }
        ControlFlow::Continue(())
    }
}

/// Whether an item is `*`, or this table's.
fn is_star_of(item: &SelectItem, table: Option<&ast::Ident>) -> bool {
    match item {
        SelectItem::Wildcard(_) => true,
        SelectItem::QualifiedWildcard(ast::SelectItemQualifiedWildcardKind::ObjectName(name), _) => {
            name.0.last().and_then(|part| part.as_ident()).map(fold) == table.map(fold)
        }
        _ => false,
    }
}

/// Gives the items of the first SELECT of a set operation these names.
fn name_first_branch(body: &mut ast::SetExpr, columns: &[ast::Ident]) {
    match body {
        ast::SetExpr::SetOperation { left, .. } => name_first_branch(left, columns),
        ast::SetExpr::Query(query) => name_first_branch(&mut query.body, columns),
        ast::SetExpr::Select(select) => {
            let plain =
                |item: &SelectItem| matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. });
            if select.projection.len() != columns.len() || !select.projection.iter().all(plain) {
                return;
            }
            for (item, name) in select.projection.iter_mut().zip(columns) {
                if let SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } = item {
                    *item = SelectItem::ExprWithAlias { expr: expr.clone(), alias: name.clone() };
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_names_are_marked_and_stripped() {
        let mut query = crate::plan::parse_query("SELECT 1, 1, a, a, t.b, u.b FROM t, u").unwrap();
        prepare(&mut query, &|_| None);
        let text = query.to_string();
        assert!(text.matches(MARK).count() >= 2, "{text}");
        assert_eq!(strip("a\u{200b}\u{200b}"), "a");
    }
}

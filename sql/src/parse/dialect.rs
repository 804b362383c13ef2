//! PostgreSQL's dialect of sqlparser, with our additions and a budget.
//!
//! sqlparser tests the *type* of a dialect in about a hundred places, so ours claims to be `PostgreSqlDialect` and delegates every method
//! that one overrides. `supports_table_versioning` is what lets `t AT(k => expr)` through, the carrier of every table modifier.
//!
//! # Invariants
//! - DIA-1 a script that PostgreSQL's dialect parses gives the same tree here. Test: `the_dialect_agrees_with_postgresql`.
//! - DIA-2 parsing costs at most a constant number of steps per token: sqlparser backtracks, and some nestings double the work with every
//!   level. The budget is spent in `parse_prefix`, which every operand passes; running out is the error that `maybe_parse` does not
//!   swallow. Test: `bombs_stop_quickly`.
//! - DIA-3 no chain of operators is longer than [`CHAIN`]. Test: `bombs_stop_quickly`.
//!
//! # Deliberately absent
//! Named arguments whose name is an expression (`f('a': 1)`): telling them from plain arguments is what explodes.

use std::any::TypeId;
use std::cell::Cell;

use sqlparser::ast::{
    ColumnOption, Expr, Function, FunctionArg, FunctionArgExpr, FunctionArgumentList, FunctionArguments, Ident,
    ObjectName,
};
use sqlparser::dialect::{Dialect, PostgreSqlDialect, Precedence};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::Token;

/// The set constructor that `{'a', 'b'}` becomes.
pub(crate) const MAKE_SET: &str = "make_set";

/// How many operands may be tried per token of a statement, and for a statement at least.
const STEPS_PER_TOKEN: usize = 64;
const STEPS_AT_LEAST: usize = 4096;

/// The longest chain of operators: sqlparser builds it as deep as it is long, and taking a tree down again costs stack.
const CHAIN: usize = 50_000;
/// How many operators go by between two looks at the chain.
const CHAIN_LOOK: usize = 256;

/// PostgreSQL's dialect with LatticeDB's additions. One per statement, because it counts.
#[derive(Debug)]
pub(crate) struct LatticeDialect {
    base: PostgreSqlDialect,
    steps: Cell<usize>,
    question_marks: bool,
    operators: Cell<usize>,
}

impl LatticeDialect {
    /// A dialect with the budget for a statement of so many tokens.
    pub(crate) fn for_tokens(tokens: usize) -> LatticeDialect {
        let steps = tokens.saturating_mul(STEPS_PER_TOKEN).max(STEPS_AT_LEAST);
        LatticeDialect {
            base: PostgreSqlDialect {},
            steps: Cell::new(steps),
            question_marks: false,
            operators: Cell::new(0),
        }
    }

    /// A dialect for the tokenizer. `?` is a parameter when asked, else an operator.
    pub(crate) fn for_text(question_marks: bool) -> LatticeDialect {
        LatticeDialect { question_marks, ..LatticeDialect::for_tokens(0) }
    }

    /// Spends one step.
    fn spend(&self) -> Result<(), ParserError> {
        match self.steps.get() {
            0 => Err(ParserError::RecursionLimitExceeded),
            steps => {
                self.steps.set(steps - 1);
                Ok(())
            }
        }
    }

    /// `{'a', 'b'}`: a set literal.
    fn parse_set_literal(&self, parser: &mut Parser<'_>) -> Result<Expr, ParserError> {
        parser.expect_token(&Token::LBrace)?;
        let items = if parser.peek_token_ref().token == Token::RBrace {
            Vec::new()
        } else {
            parser.parse_comma_separated(Parser::parse_expr)?
        };
        parser.expect_token(&Token::RBrace)?;
        Ok(call(MAKE_SET, items))
    }
}

/// The call `name(arguments)` as sqlparser writes it down.
pub(crate) fn call(name: &str, arguments: Vec<Expr>) -> Expr {
    Expr::Function(Function {
        name: ObjectName::from(vec![Ident::new(name)]),
        uses_odbc_syntax: false,
        parameters: FunctionArguments::None,
        args: FunctionArguments::List(FunctionArgumentList {
            duplicate_treatment: None,
            args: arguments.into_iter().map(|argument| FunctionArg::Unnamed(FunctionArgExpr::Expr(argument))).collect(),
            clauses: Vec::new(),
        }),
        filter: None,
        null_treatment: None,
        over: None,
        within_group: Vec::new(),
    })
}

/// Whether these unquoted words come next.
fn peek(parser: &Parser<'_>, words: &[&str]) -> bool {
    words.iter().enumerate().all(|(i, wanted)| match &parser.peek_nth_token_ref(i).token {
        Token::Word(word) => word.quote_style.is_none() && word.value.eq_ignore_ascii_case(wanted),
        _ => false,
    })
}

/// Collects the tokens of `MERGE policy[(…)]`, `INDEX method [(…)]` and `GENERATED … AS IDENTITY [(…)]` after a column's type;
/// [`super::grammar`] reads them. (sqlparser wants the options of a sequence in one order.)
fn column_clause(parser: &mut Parser<'_>) -> Result<Option<Vec<Token>>, ParserError> {
    let words = if peek(parser, &["generated", "always", "as", "identity"]) {
        4
    } else if peek(parser, &["generated", "by", "default", "as", "identity"]) {
        5
    } else if peek(parser, &["merge"]) || peek(parser, &["index"]) {
        2
    } else {
        return Ok(None);
    };
    let mut tokens = Vec::new();
    for _ in 0..words {
        match parser.next_token().token {
            word @ Token::Word(_) => tokens.push(word),
            other => return Err(ParserError::ParserError(format!("Expected: a name, found: {other}"))),
        }
    }
    if parser.peek_token_ref().token == Token::LParen {
        let mut depth = 0usize;
        loop {
            let token = parser.next_token().token;
            match token {
                Token::LParen => depth += 1,
                Token::RParen => depth -= 1,
                Token::EOF => return Err(ParserError::ParserError("Expected: ), found: EOF".to_owned())),
                _ => {}
            }
            tokens.push(token);
            if depth == 0 {
                break;
            }
        }
    }
    Ok(Some(tokens))
}

/// The expression that grows when an operator follows it.
fn left_child(expr: &Expr) -> Option<&Expr> {
    match expr {
        Expr::BinaryOp { left, .. } | Expr::AnyOp { left, .. } | Expr::AllOp { left, .. } => Some(left),
        Expr::IsDistinctFrom(left, _) | Expr::IsNotDistinctFrom(left, _) => Some(left),
        Expr::IsNull(expr)
        | Expr::IsNotNull(expr)
        | Expr::IsTrue(expr)
        | Expr::IsNotTrue(expr)
        | Expr::IsFalse(expr)
        | Expr::IsNotFalse(expr)
        | Expr::IsUnknown(expr)
        | Expr::IsNotUnknown(expr)
        | Expr::UnaryOp { expr, .. }
        | Expr::Cast { expr, .. }
        | Expr::Collate { expr, .. }
        | Expr::InList { expr, .. }
        | Expr::InSubquery { expr, .. }
        | Expr::Between { expr, .. }
        | Expr::Like { expr, .. }
        | Expr::ILike { expr, .. }
        | Expr::SimilarTo { expr, .. }
        | Expr::IsNormalized { expr, .. } => Some(expr),
        Expr::AtTimeZone { timestamp, .. } => Some(timestamp),
        Expr::CompoundFieldAccess { root, .. } => Some(root),
        _ => None,
    }
}

macro_rules! delegate {
    ($($name:ident),* $(,)?) => {
        $(fn $name(&self) -> bool { self.base.$name() })*
    };
}

impl Dialect for LatticeDialect {
    fn dialect(&self) -> TypeId {
        TypeId::of::<PostgreSqlDialect>()
    }

    // Ours.

    fn supports_table_versioning(&self) -> bool {
        true
    }

    fn supports_named_fn_args_with_expr_name(&self) -> bool {
        false
    }

    // PostgreSQL has neither hints in comments nor XML here; a comment must never change a plan.
    fn supports_comment_optimizer_hint(&self) -> bool {
        false
    }

    fn parse_prefix(&self, parser: &mut Parser<'_>) -> Option<Result<Expr, ParserError>> {
        if let Err(spent) = self.spend() {
            return Some(Err(spent));
        }
        if parser.peek_token_ref().token == Token::LBrace {
            return Some(self.parse_set_literal(parser));
        }
        None
    }

    fn parse_infix(&self, _: &mut Parser<'_>, expr: &Expr, _: u8) -> Option<Result<Expr, ParserError>> {
        let seen = self.operators.get() + 1;
        self.operators.set(seen);
        if seen.is_multiple_of(CHAIN_LOOK)
            && std::iter::successors(Some(expr), |expr| left_child(expr)).nth(CHAIN).is_some()
        {
            return Some(Err(ParserError::RecursionLimitExceeded));
        }
        None
    }

    fn parse_column_option(
        &self,
        parser: &mut Parser<'_>,
    ) -> Result<Option<Result<Option<ColumnOption>, ParserError>>, ParserError> {
        Ok(column_clause(parser)?.map(|tokens| Ok(Some(ColumnOption::DialectSpecific(tokens)))))
    }

    // PostgreSQL's.

    fn identifier_quote_style(&self, identifier: &str) -> Option<char> {
        self.base.identifier_quote_style(identifier)
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        self.base.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        self.base.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        self.base.is_identifier_part(ch)
    }

    fn is_custom_operator_part(&self, ch: char) -> bool {
        self.base.is_custom_operator_part(ch) && !(self.question_marks && ch == '?')
    }

    // The tokenizer asks this to tell `?` the operator from `?` the parameter.
    fn supports_geometric_types(&self) -> bool {
        !self.question_marks
    }

    fn is_reserved_for_identifier(&self, keyword: Keyword) -> bool {
        self.base.is_reserved_for_identifier(keyword)
    }

    fn get_next_precedence(&self, parser: &Parser<'_>) -> Option<Result<u8, ParserError>> {
        self.base.get_next_precedence(parser)
    }

    fn prec_value(&self, precedence: Precedence) -> u8 {
        self.base.prec_value(precedence)
    }

    delegate!(
        supports_unicode_string_literal,
        supports_filter_during_aggregation,
        supports_group_by_expr,
        allow_extract_custom,
        allow_extract_single_quotes,
        supports_create_index_with_clause,
        supports_explain_with_utility_options,
        supports_listen_notify,
        supports_factorial_operator,
        supports_bitwise_shift_operators,
        supports_comment_on,
        supports_load_extension,
        supports_named_fn_args_with_colon_operator,
        supports_empty_projections,
        supports_nested_comments,
        supports_string_escape_constant,
        supports_numeric_literal_underscores,
        supports_array_typedef_with_brackets,
        supports_set_names,
        supports_alter_column_type_using,
        supports_notnull_operator,
        supports_interval_options,
        supports_insert_table_alias,
        supports_create_table_like_parenthesized,
        supports_select_wildcard_with_alias,
        supports_comma_separated_trim,
        supports_xml_expressions,
    );
}

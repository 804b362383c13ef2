//! Text to statements: tokens → desugared tokens → sqlparser's trees → our [`Statement`]s.
//!
//! 1. sqlparser's tokenizer cuts the script; semicolons cut it into statements.
//! 2. [`desugar`] turns our table modifiers into one carrier that stock sqlparser reads, and `?` into `$n` when asked.
//! 3. [`grammar`] reads the statement, with sqlparser's parser for queries, expressions and definitions, under [`dialect`]'s budget.
//! 4. [`rewrite`] brings the tree into the form DataFusion plans; [`strict`] refuses what nobody would execute.
//!
//! # Invariants
//! - PAR-1 every statement of the specification parses. Test: `the_specification_parses`.
//! - PAR-2 syntax that is not executed is an error that names it, with SQLSTATE 0A000. Test: `every_ignored_clause_is_refused`.
//! - PAR-3 an error says where, in characters of the script. Test: `errors_say_where`.
//! - PAR-4 parsing takes time in proportion to the text. Test: `bombs_stop_quickly`.
//!
//! # Deliberately absent
//! Printing trees back as SQL: sqlparser cannot for versioned tables. What must be kept is kept as text ([`Statement::text`],
//! [`statement::CreateView::query_text`]).

pub(crate) mod desugar;
pub(crate) mod dialect;
pub(crate) mod grammar;
mod locate;
mod modifiers;
pub(crate) mod rewrite;
pub(crate) mod source;
pub(crate) mod statement;
pub(crate) mod strict;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use sqlparser::ast::{Expr, Ident, ObjectName};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Token, TokenWithSpan, Tokenizer};

pub(crate) use locate::locate;
pub(crate) use modifiers::{TableModifiers, TimeRange};
pub(crate) use rewrite::MARK;
pub(crate) use rewrite::shown_name;
pub(crate) use sqlparser;
pub(crate) use statement::{Statement, StatementAst};

use crate::error::{Error, Result, too_complex};
use desugar::{Misplaced, desugar};
use dialect::LatticeDialect;
use grammar::{Context, Stop};
use source::{Locator, split_location};

/// How deep statements, queries and expressions may nest.
const DEPTH: usize = 100;

/// A longer statement is read on a thread with a large stack: before chains are balanced, a tree may be as deep as the text is long.
/// So is one with deep parentheses: not every recursion of sqlparser grows the stack when it must.
const INLINE_TOKENS: usize = 300;
const INLINE_PARENTHESES: usize = 10;
const STACK: usize = 256 << 20;
/// The most set operators in one statement.
const SET_OPERATORS: usize = 20_000;

/// How a script is read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ParseOptions {
    /// `?` is a parameter: the n-th becomes `$n` (as JDBC and ODBC write them; `??` is then the operator `?`).
    pub(crate) question_marks: bool,
}

/// Reads a script of statements separated by semicolons. Empty statements are skipped, so the result may be empty.
pub(crate) fn parse_script(text: &str, options: ParseOptions) -> Result<Vec<Statement>> {
    let mut locator = Locator::new(text);
    let tokens = tokenize(text, options, &mut locator)?;
    let mut statements = Vec::new();
    for tokens in tokens.split(|token| token.token == Token::SemiColon) {
        if !tokens.is_empty() {
            statements.push(parse_tokens(text, tokens.to_vec(), &mut locator, options)?);
        }
    }
    Ok(statements)
}

/// Reads exactly one statement.
pub(crate) fn parse_one(text: &str, options: ParseOptions) -> Result<Statement> {
    let mut statements = parse_script(text, options)?;
    match statements.len() {
        1 => Ok(statements.remove(0)),
        0 => Err(Error::syntax("the statement is empty")),
        _ => Err(Error::syntax("several statements where one is expected").at(statements[1].position)),
    }
}

/// Reads one expression, as the catalog keeps defaults, checks and policies.
pub(crate) fn parse_expr(text: &str) -> Result<Expr> {
    let mut locator = Locator::new(text);
    let tokens = tokenize(text, ParseOptions::default(), &mut locator)?;
    let dialect = LatticeDialect::for_tokens(tokens.len());
    let end = tokens.last().map_or(Location { line: 1, column: 1 }, |token| token.span.end);
    let mut parser = Parser::new(&dialect).with_recursion_limit(DEPTH).with_tokens_with_locations(tokens);
    let parsed = parser.parse_expr().and_then(|expr| match &parser.peek_token_ref().token {
        Token::EOF => Ok(expr),
        _ => parser.expected_ref("the end", parser.peek_token_ref()),
    });
    strict::expr(parsed.map_err(|error| syntax_error(error, end, &mut locator))?)
}

/// The tokens of a script without white space and comments.
fn tokenize(text: &str, options: ParseOptions, locator: &mut Locator<'_>) -> Result<Vec<TokenWithSpan>> {
    let dialect = LatticeDialect::for_text(options.question_marks);
    let mut tokens = Tokenizer::new(&dialect, text).tokenize_with_location().map_err(|error| {
        let position = locator.place(error.location).character;
        Error::syntax(format!("syntax error: {}", crate::error::tidy(&error.message))).at(position)
    })?;
    tokens.retain(|token| !matches!(token.token, Token::Whitespace(_) | Token::EOF));
    Ok(tokens)
}

/// Reads the tokens of one statement, on a large stack if there are many.
fn parse_tokens(
    text: &str,
    tokens: Vec<TokenWithSpan>,
    locator: &mut Locator<'_>,
    options: ParseOptions,
) -> Result<Statement> {
    if tokens.len() <= INLINE_TOKENS && parentheses(&tokens) <= INLINE_PARENTHESES {
        return parse_here(text, tokens, locator, options);
    }
    std::thread::scope(|scope| {
        let reader = std::thread::Builder::new()
            .name("sql-parse".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, || parse_here(text, tokens, locator, options))
            .map_err(|error| {
                Error::new(base::ErrorKind::Exhausted, format!("no thread to parse the statement: {error}"))
            })?;
        match reader.join() {
            Ok(statement) => statement,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// How deep parentheses nest.
fn parentheses(tokens: &[TokenWithSpan]) -> usize {
    let (mut depth, mut deepest) = (0usize, 0usize);
    for token in tokens {
        match token.token {
            Token::LParen => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            Token::RParen => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn parse_here(
    text: &str,
    mut tokens: Vec<TokenWithSpan>,
    locator: &mut Locator<'_>,
    options: ParseOptions,
) -> Result<Statement> {
    let (Some(first), Some(last)) = (tokens.first(), tokens.last()) else {
        return Err(Error::syntax("the statement is empty"));
    };
    let (start, end) = (first.span.start, last.span.end);
    let place = locator.place(start);
    let set_operator = |token: &TokenWithSpan| matches!(&token.token, Token::Word(word) if matches!(word.keyword, Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT));
    if tokens.iter().filter(|token| set_operator(token)).count() > SET_OPERATORS {
        return Err(too_complex().at(place.character));
    }
    let parameters = parameters(&mut tokens, options).map_err(|error| error.at(place.character))?;
    let dialect = LatticeDialect::for_tokens(tokens.len());
    let (tokens, notes) = desugar(tokens, &dialect).map_err(|Misplaced { message, hint, at }| {
        let error = Error::syntax(message).at(locator.place(at).character);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    })?;
    let mut parser = Parser::new(&dialect).with_recursion_limit(DEPTH).with_tokens_with_locations(tokens);
    let mut context = Context { text, locator: locator.clone(), notes, end, parameters };
    let kind = grammar::statement(&mut context, &mut parser)
        .and_then(|kind| {
            if parser.peek_token_ref().token == Token::EOF {
                Ok(kind)
            } else {
                Ok(parser.expected_ref("the end of the statement", parser.peek_token_ref())?)
            }
        })
        .map_err(|stop| match stop {
            Stop::Syntax(error) => syntax_error(error, end, locator),
            Stop::Refused(error) => {
                let here = parser.peek_token_ref();
                let at = if here.token == Token::EOF { start } else { here.span.start };
                error.at(locator.place(at).character)
            }
        })?;
    context.notes.check().map_err(|error| error.at(place.character))?;
    let byte = locator.place(end).byte;
    Ok(Statement { text: Arc::from(&text[place.byte..byte]), position: place.character, parameters, kind })
}

/// Numbers `?` when asked, and returns the highest parameter.
fn parameters(tokens: &mut Vec<TokenWithSpan>, options: ParseOptions) -> Result<usize> {
    if options.question_marks {
        join_question_operators(tokens);
    }
    let mut highest = 0;
    let mut asked = 0;
    for token in tokens {
        let Token::Placeholder(name) = &mut token.token else { continue };
        if name == "?" {
            asked += 1;
            *name = format!("${asked}");
        }
        let number: usize = name
            .strip_prefix('$')
            .and_then(|digits| digits.parse().ok())
            .filter(|number| (1..=65_535).contains(number))
            .ok_or_else(|| {
                Error::state(base::SqlState::UNDEFINED_PARAMETER, format!("there is no parameter {name}"))
                    .with_hint("parameters are $1 to $65535")
            })?;
        highest = highest.max(number);
    }
    if asked > 0 && highest > asked {
        return Err(Error::syntax("syntax error: ? and $n in one statement"));
    }
    Ok(highest)
}

/// Where `?` is a parameter, the operators of that name are written `??`, `??|` and `??&`.
fn join_question_operators(tokens: &mut Vec<TokenWithSpan>) {
    let mut at = 0;
    while at + 1 < tokens.len() {
        let mark = |i: usize| matches!(&tokens[i].token, Token::Placeholder(name) if name == "?");
        let adjacent = |i: usize| tokens[i].span.end == tokens[i + 1].span.start;
        if mark(at) && mark(at + 1) && adjacent(at) {
            let third = tokens.get(at + 2).filter(|_| adjacent(at + 1)).map(|token| token.token.clone());
            let (token, eaten) = match third {
                Some(Token::Pipe) => (Token::QuestionPipe, 3),
                Some(Token::Ampersand) => (Token::QuestionAnd, 3),
                _ => (Token::Question, 2),
            };
            tokens[at].token = token;
            tokens.drain(at + 1..at + eaten);
        }
        at += 1;
    }
}

/// sqlparser's error in our words, with its place.
fn syntax_error(error: ParserError, end: Location, locator: &mut Locator<'_>) -> Error {
    let message = match error {
        ParserError::RecursionLimitExceeded => return too_complex(),
        ParserError::TokenizerError(message) | ParserError::ParserError(message) => message,
    };
    let (text, at) = split_location(&message);
    let text =
        text.replace("Expected: ", "expected ").replace("found: EOF", "found the end").replace("found: ", "found ");
    let position = locator.place(at.unwrap_or(end)).character;
    Error::syntax(format!("syntax error: {}", crate::error::tidy(&text))).at(position)
}

impl desugar::Notes {
    /// What was cut out must have been taken by the statement it belongs to.
    fn check(&self) -> Result<()> {
        let desugar::Notes { overriding, emit, staleness, periods, system_versioning, columns } = self;
        let left = [
            (overriding.is_some(), "OVERRIDING here"),
            (emit.is_some(), "EMIT here"),
            (staleness.is_some(), "READ AT MOST … STALE here"),
            (!periods.is_empty(), "PERIOD FOR here"),
            (*system_versioning, "WITH SYSTEM VERSIONING here"),
            (columns.is_some(), "a list of column names here"),
        ];
        match left.into_iter().find(|(is_there, _)| *is_there) {
            Some((_, what)) => Err(Error::unsupported(what)),
            None => Ok(()),
        }
    }
}

/// An identifier as PostgreSQL folds it: quoted as written, else in lower case.
pub(crate) fn fold(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// The parts of a name, folded.
pub(crate) fn name_parts(name: &ObjectName) -> Vec<String> {
    name.0.iter().map(|part| part.as_ident().map_or_else(|| part.to_string(), fold)).collect()
}

/// Words that PostgreSQL reserves entirely; sqlparser takes most of them as names. (`DEFAULT` stands for a value, see [`is_default`].)
const RESERVED: [&str; 73] = [
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "both",
    "case",
    "cast",
    "check",
    "collate",
    "column",
    "constraint",
    "create",
    "deferrable",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "false",
    "fetch",
    "for",
    "foreign",
    "from",
    "grant",
    "group",
    "having",
    "in",
    "initially",
    "intersect",
    "into",
    "lateral",
    "leading",
    "limit",
    "not",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "placing",
    "primary",
    "references",
    "returning",
    "select",
    "some",
    "symmetric",
    "table",
    "then",
    "to",
    "trailing",
    "true",
    "union",
    "unique",
    "using",
    "variadic",
    "when",
    "where",
    "window",
    "with",
    "inner",
    "left",
    "right",
    "full",
    "join",
    "natural",
    "cross",
];

/// An unquoted reserved word where a name is expected is a syntax error.
pub(crate) fn check_name(ident: &Ident) -> Result<()> {
    let reserved = ident.quote_style.is_none() && RESERVED.iter().any(|word| ident.value.eq_ignore_ascii_case(word));
    if !reserved {
        return Ok(());
    }
    Err(Error::syntax(format!("syntax error: {} is a reserved word", ident.value.to_uppercase()))
        .with_hint(format!("as a name it is written \"{}\"", ident.value)))
}

/// The same for each part of a name.
pub(crate) fn check_names(name: &ObjectName) -> Result<()> {
    name.0.iter().filter_map(|part| part.as_ident()).try_for_each(check_name)
}

/// Whether an expression is the word `DEFAULT`.
pub(crate) fn is_default(expr: &Expr) -> bool {
    matches!(expr, Expr::Identifier(ident) if ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("default"))
}

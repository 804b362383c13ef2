//! Tokens to statements.
//!
//! Queries, expressions, types, table definitions and the row-changing statements are read by sqlparser; everything else is short
//! enough to be read here with sqlparser's public pieces, which keeps the clauses we accept in one place and the messages ours.
//!
//! # Failure
//! [`Stop::Syntax`] carries sqlparser's message with its place; [`Stop::Refused`] is an error of ours (syntax we do not execute).

use std::sync::Arc;

use sqlparser::ast::{
    DataType, Expr, FunctionArg, FunctionArgExpr, Ident, ObjectName, Query, Statement as Sql, UnaryOperator, Value,
};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{IsOptional, Parser, ParserError};
use sqlparser::tokenizer::{Location, Token};

use super::desugar::Notes;
use super::source::Locator;
use super::statement::*;
use super::{fold, strict};
use crate::error::{Error, nearest};

/// Why a statement was not read.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It is not well formed.
    Syntax(ParserError),
    /// It is, but we do not execute it.
    Refused(Box<Error>),
}

impl From<ParserError> for Stop {
    fn from(error: ParserError) -> Stop {
        Stop::Syntax(error)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Stop {
        Stop::Refused(Box::new(error))
    }
}

pub(crate) type Parsed<T> = Result<T, Stop>;

/// What the statement parsers need besides tokens.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    /// The script.
    pub(crate) text: &'a str,
    /// Finds places in it.
    pub(crate) locator: Locator<'a>,
    /// What desugaring cut out; each statement takes what it knows, and what stays is refused.
    pub(crate) notes: Notes,
    /// Where the statement ends.
    pub(crate) end: Location,
    /// The number of its highest parameter.
    pub(crate) parameters: usize,
}

impl Context<'_> {
    /// The text from the parser's next token to `end`.
    fn rest(&mut self, start: Location, end: Location) -> (Arc<str>, usize) {
        let from = self.locator.place(start);
        let to = self.locator.place(end);
        (Arc::from(&self.text[from.byte..to.byte.max(from.byte)]), from.character)
    }

    /// Parses a statement that another one contains. One level only: what such statements mean inside each other is not
    /// defined, and their depth would be the client's to choose.
    fn inner(&mut self, parser: &mut Parser<'_>) -> Parsed<Box<Statement>> {
        if ["explain", "describe", "desc", "prepare"].iter().any(|word| peek(parser, &[word])) {
            return expected(parser, "a query or a statement that changes rows");
        }
        let start = parser.peek_token_ref().span.start;
        let kind = statement(self, parser)?;
        let (text, position) = self.rest(start, self.end);
        Ok(Box::new(Statement { text, position, parameters: self.parameters, kind }))
    }
}

/// Eats these unquoted words if they come next.
fn eat(parser: &mut Parser<'_>, words: &[&str]) -> bool {
    if !peek(parser, words) {
        return false;
    }
    for _ in words {
        parser.advance_token();
    }
    true
}

/// Whether these unquoted words come next.
fn peek(parser: &Parser<'_>, words: &[&str]) -> bool {
    words.iter().enumerate().all(|(i, wanted)| match &parser.peek_nth_token_ref(i).token {
        Token::Word(word) => word.quote_style.is_none() && word.value.eq_ignore_ascii_case(wanted),
        _ => false,
    })
}

/// Eats these words or fails.
fn expect(parser: &mut Parser<'_>, words: &[&str]) -> Parsed<()> {
    if eat(parser, words) { Ok(()) } else { expected(parser, &words.join(" ").to_uppercase()) }
}

/// "expected …, found …" at the next token.
fn expected<T>(parser: &Parser<'_>, what: &str) -> Parsed<T> {
    Ok(parser.expected_ref(what, parser.peek_token_ref())?)
}

/// The next token as an unquoted word in lower case, without eating it.
fn next_word(parser: &Parser<'_>) -> Option<String> {
    match &parser.peek_token_ref().token {
        Token::Word(word) if word.quote_style.is_none() => Some(word.value.to_ascii_lowercase()),
        _ => None,
    }
}

fn at_end(parser: &Parser<'_>) -> bool {
    parser.peek_token_ref().token == Token::EOF
}

fn if_exists(parser: &mut Parser<'_>) -> bool {
    eat(parser, &["if", "exists"])
}

fn if_not_exists(parser: &mut Parser<'_>) -> bool {
    eat(parser, &["if", "not", "exists"])
}

fn name(parser: &mut Parser<'_>) -> Parsed<ObjectName> {
    Ok(parser.parse_object_name(false)?)
}

fn columns(parser: &mut Parser<'_>) -> Parsed<Vec<Ident>> {
    Ok(parser.parse_parenthesized_column_list(IsOptional::Optional, false)?)
}

/// Reads one statement; the caller checks that nothing follows.
pub(crate) fn statement(cx: &mut Context<'_>, parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    let Some(word) = next_word(parser) else {
        return if parser.peek_token_ref().token == Token::LParen {
            query(cx, parser)
        } else {
            expected(parser, "a statement")
        };
    };
    match word.as_str() {
        "select" | "with" | "values" => query(cx, parser),
        "insert" | "update" | "delete" => rows(cx, parser),
        "merge" => merge(parser, None),
        "erase" => erase(parser),
        "copy" => copy(parser),
        "truncate" => truncate(parser),
        "create" => create(cx, parser),
        "alter" => alter(parser),
        "drop" => drop_object(parser),
        "comment" => comment(parser),
        "analyze" | "analyse" => analyze(parser),
        "vacuum" => vacuum(parser),
        "explain" => explain(cx, parser),
        "describe" | "desc" => describe(parser),
        "begin" | "start" => begin(parser),
        "commit" | "end" | "rollback" | "abort" => finish(parser),
        "savepoint" => {
            parser.advance_token();
            Ok(StatementAst::Savepoint(parser.parse_identifier()?))
        }
        "release" => {
            parser.advance_token();
            eat(parser, &["savepoint"]);
            Ok(StatementAst::Release(parser.parse_identifier()?))
        }
        "set" => set(parser),
        "show" => show(parser),
        "reset" => reset(parser),
        "discard" => discard(parser),
        "prepare" => prepare(cx, parser),
        "execute" => execute(parser),
        "deallocate" => deallocate(parser),
        "kill" => kill(parser),
        "backup" => backup(parser),
        "call" => procedure(parser),
        "refresh" => refresh(parser),
        "apply" => apply_policy(parser),
        other => unknown(parser, other),
    }
}

/// A statement we do not have: named if another database has it, a syntax error otherwise.
fn unknown(parser: &Parser<'_>, word: &str) -> Parsed<StatementAst> {
    const OTHERS: [&str; 34] = [
        "grant",
        "revoke",
        "listen",
        "notify",
        "unlisten",
        "declare",
        "fetch",
        "close",
        "move",
        "lock",
        "load",
        "do",
        "security",
        "cluster",
        "reindex",
        "checkpoint",
        "use",
        "import",
        "reassign",
        "attach",
        "detach",
        "pragma",
        "replace",
        "upsert",
        "cache",
        "uncache",
        "optimize",
        "msck",
        "install",
        "export",
        "unload",
        "rename",
        "flush",
        "from",
    ];
    if OTHERS.contains(&word) {
        return Err(Error::unsupported(format!("the statement {}", word.to_uppercase())).into());
    }
    const OURS: [&str; 32] = [
        "select",
        "with",
        "values",
        "insert",
        "update",
        "delete",
        "merge",
        "copy",
        "truncate",
        "create",
        "alter",
        "drop",
        "comment",
        "analyze",
        "vacuum",
        "explain",
        "describe",
        "begin",
        "start",
        "commit",
        "rollback",
        "savepoint",
        "release",
        "set",
        "show",
        "reset",
        "discard",
        "prepare",
        "execute",
        "deallocate",
        "call",
        "table",
    ];
    match nearest(word, OURS) {
        Some(near) => {
            let Err(error) = parser.expected_ref::<()>("a statement", parser.peek_token_ref()) else {
                return expected(parser, "a statement");
            };
            let (message, _) = super::source::split_location(match &error {
                ParserError::ParserError(text) | ParserError::TokenizerError(text) => text,
                ParserError::RecursionLimitExceeded => "",
            });
            let message = format!("syntax error: {}", crate::error::tidy(message));
            Err(Error::syntax(message).with_hint(format!("did you mean {}?", near.to_uppercase())).into())
        }
        None => expected(parser, "a statement"),
    }
}

// ---------------------------------------------------------------------------------------------------------------- rows

fn query(cx: &mut Context<'_>, parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    let query = parser.parse_query()?;
    let kind = strict::query_statement(query, &mut cx.notes)?;
    match (kind, cx.notes.staleness.take()) {
        (kind, None) => Ok(kind),
        (StatementAst::Query(query), Some(milliseconds)) => {
            Ok(StatementAst::Extension(Box::new(Extension::BoundedStaleness { query, milliseconds })))
        }
        (_, Some(_)) => Err(Error::unsupported("READ AT MOST … STALE on a statement that writes").into()),
    }
}

/// `INSERT`, `UPDATE`, `DELETE`, read by sqlparser.
fn rows(cx: &mut Context<'_>, parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    let statement = parser.parse_statement()?;
    Ok(strict::row_statement(None, statement, &mut cx.notes)?)
}

/// `ERASE FROM t …` has the grammar of `DELETE FROM t …`.
fn erase(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    let token = parser.next_token();
    let statement = parser.parse_delete(token)?;
    match strict::row_statement(None, statement, &mut Notes::default())? {
        StatementAst::Delete(delete) => Ok(StatementAst::Extension(Box::new(Extension::Erase(*delete)))),
        other => Err(Error::internal(format!("ERASE was read as {}", other.name())).into()),
    }
}

/// `MERGE`: sqlparser's lacks `DO NOTHING`, `DEFAULT VALUES` and `OVERRIDING`.
pub(crate) fn merge(parser: &mut Parser<'_>, with: Option<sqlparser::ast::With>) -> Parsed<StatementAst> {
    expect(parser, &["merge"])?;
    expect(parser, &["into"])?;
    let table = parser.parse_table_factor()?;
    expect(parser, &["using"])?;
    let source = parser.parse_table_factor()?;
    expect(parser, &["on"])?;
    let on = parser.parse_expr()?;
    let mut clauses = Vec::new();
    while eat(parser, &["when"]) {
        let when = if eat(parser, &["matched"]) {
            MergeWhen::Matched
        } else {
            expect(parser, &["not", "matched"])?;
            if eat(parser, &["by", "source"]) {
                MergeWhen::NotMatchedBySource
            } else {
                eat(parser, &["by", "target"]);
                MergeWhen::NotMatched
            }
        };
        let condition = if eat(parser, &["and"]) { Some(parser.parse_expr()?) } else { None };
        expect(parser, &["then"])?;
        clauses.push(MergeClause { when, condition, action: merge_action(parser, when)? });
    }
    if clauses.is_empty() {
        return expected(parser, "WHEN");
    }
    let returning =
        if eat(parser, &["returning"]) { parser.parse_comma_separated(Parser::parse_select_item)? } else { Vec::new() };
    Ok(strict::merge(Merge { with, table, source, on, clauses, returning })?)
}

fn merge_action(parser: &mut Parser<'_>, when: MergeWhen) -> Parsed<MergeAction> {
    if eat(parser, &["do", "nothing"]) {
        return Ok(MergeAction::Nothing);
    }
    let inserts = when == MergeWhen::NotMatched;
    match next_word(parser).as_deref() {
        Some("update") if !inserts => {
            expect(parser, &["update", "set"])?;
            let assignments = parser.parse_comma_separated(Parser::parse_assignment)?;
            Ok(MergeAction::Update(strict::assignments(assignments)?))
        }
        Some("delete") if !inserts => {
            parser.advance_token();
            Ok(MergeAction::Delete)
        }
        Some("insert") if inserts => {
            parser.advance_token();
            let columns = columns(parser)?;
            let overriding = if eat(parser, &["overriding", "system", "value"]) {
                Some(Overriding::System)
            } else if eat(parser, &["overriding", "user", "value"]) {
                Some(Overriding::User)
            } else {
                None
            };
            let values = if eat(parser, &["default", "values"]) {
                None
            } else {
                expect(parser, &["values"])?;
                Some(parser.parse_parenthesized(|parser| parser.parse_comma_separated(Parser::parse_expr))?)
            };
            Ok(MergeAction::Insert { columns, overriding, values })
        }
        Some("insert") => Err(Error::syntax("syntax error: INSERT needs WHEN NOT MATCHED").into()),
        Some("update" | "delete") => {
            Err(Error::syntax("syntax error: UPDATE and DELETE need WHEN MATCHED or WHEN NOT MATCHED BY SOURCE").into())
        }
        _ => expected(parser, if inserts { "INSERT or DO NOTHING" } else { "UPDATE, DELETE or DO NOTHING" }),
    }
}

fn truncate(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["truncate"])?;
    eat(parser, &["table"]);
    let exists = if_exists(parser);
    if eat(parser, &["only"]) {
        return Err(Error::unsupported("TRUNCATE … ONLY").into());
    }
    let tables = parser.parse_comma_separated(|parser| parser.parse_object_name(false))?;
    let restart_identity = eat(parser, &["restart", "identity"]);
    if !restart_identity {
        eat(parser, &["continue", "identity"]);
    }
    let cascade = cascade(parser);
    Ok(StatementAst::Truncate(Truncate { tables, restart_identity, cascade, if_exists: exists }))
}

/// `CASCADE` or `RESTRICT` (the default).
fn cascade(parser: &mut Parser<'_>) -> bool {
    let cascade = eat(parser, &["cascade"]);
    if !cascade {
        eat(parser, &["restrict"]);
    }
    cascade
}

fn copy(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["copy"])?;
    let source = if parser.peek_token_ref().token == Token::LParen {
        parser.advance_token();
        let query = strict::query(parser.parse_query()?)?;
        parser.expect_token(&Token::RParen)?;
        CopySource::Query(query)
    } else {
        CopySource::Table { name: name(parser)?, columns: columns(parser)? }
    };
    let direction = if eat(parser, &["from"]) {
        CopyDirection::From
    } else if eat(parser, &["to"]) {
        CopyDirection::To
    } else {
        return expected(parser, "FROM or TO");
    };
    if direction == CopyDirection::From && matches!(source, CopySource::Query(_)) {
        return Err(Error::syntax("syntax error: COPY (query) goes only TO").into());
    }
    let client = match direction {
        CopyDirection::From => eat(parser, &["stdin"]),
        CopyDirection::To => eat(parser, &["stdout"]),
    };
    let target = if client {
        CopyTarget::Client
    } else if peek(parser, &["program"]) {
        return Err(Error::unsupported("COPY … PROGRAM").into());
    } else {
        CopyTarget::File(parser.parse_literal_string()?)
    };
    eat(parser, &["with"]);
    let mut options = Vec::new();
    if parser.consume_token(&Token::LParen) {
        loop {
            let name = fold(&parser.parse_identifier()?);
            let value = match parser.peek_token_ref().token {
                Token::Comma | Token::RParen => None,
                _ => Some(option_value(parser)?),
            };
            options.push(CopyOption { name, value });
            if !parser.consume_token(&Token::Comma) {
                break;
            }
        }
        parser.expect_token(&Token::RParen)?;
    } else {
        legacy_copy_options(parser, &mut options)?;
    }
    if peek(parser, &["where"]) {
        return Err(Error::unsupported("COPY … WHERE").into());
    }
    Ok(StatementAst::Copy(Box::new(Copy { source, direction, target, options })))
}

/// `CSV HEADER DELIMITER ';'`, the spelling before PostgreSQL 9.
fn legacy_copy_options(parser: &mut Parser<'_>, options: &mut Vec<CopyOption>) -> Parsed<()> {
    while let Some(word) = next_word(parser) {
        let value = match word.as_str() {
            "csv" | "binary" | "text" | "parquet" => {
                parser.advance_token();
                options.push(CopyOption { name: "format".to_owned(), value: Some(OptionValue::Word(word)) });
                continue;
            }
            "header" => {
                parser.advance_token();
                None
            }
            "delimiter" | "delimiters" | "null" | "quote" | "escape" | "encoding" => {
                parser.advance_token();
                eat(parser, &["as"]);
                Some(OptionValue::Text(parser.parse_literal_string()?))
            }
            _ => break,
        };
        let name = if word == "delimiters" { "delimiter".to_owned() } else { word };
        options.push(CopyOption { name, value });
    }
    Ok(())
}

/// The value of an option: a word, a string, a number, a list of columns or an expression.
fn option_value(parser: &mut Parser<'_>) -> Parsed<OptionValue> {
    match parser.peek_token_ref().token.clone() {
        Token::LParen => {
            parser.advance_token();
            let columns = parser.parse_comma_separated(Parser::parse_identifier)?;
            parser.expect_token(&Token::RParen)?;
            Ok(OptionValue::Columns(columns.iter().map(fold).collect()))
        }
        Token::Mul => {
            parser.advance_token();
            Ok(OptionValue::All)
        }
        _ => Ok(setting_value(&parser.parse_expr()?)),
    }
}

/// An expression as the value of a setting.
fn setting_value(expr: &Expr) -> OptionValue {
    match expr {
        Expr::Identifier(ident) if ident.quote_style.is_none() => OptionValue::Word(fold(ident)),
        Expr::Identifier(ident) => OptionValue::Text(ident.value.clone()),
        Expr::Function(function) if matches!(function.args, sqlparser::ast::FunctionArguments::None) => {
            OptionValue::Word(function.name.to_string().to_lowercase())
        }
        Expr::Value(value) => match &value.value {
            Value::Number(number, _) => OptionValue::Number(number.clone()),
            Value::Boolean(value) => OptionValue::Word(value.to_string()),
            Value::Null => OptionValue::Word("null".to_owned()),
            Value::Placeholder(_) => OptionValue::Expr(expr.clone()),
            other => match other.clone().into_string() {
                Some(text) => OptionValue::Text(text),
                None => OptionValue::Expr(expr.clone()),
            },
        },
        Expr::UnaryOp { op: UnaryOperator::Minus, expr: inner } => match setting_value(inner) {
            OptionValue::Number(number) => OptionValue::Number(format!("-{number}")),
            _ => OptionValue::Expr(expr.clone()),
        },
        _ => OptionValue::Expr(expr.clone()),
    }
}

// ------------------------------------------------------------------------------------------------------------- objects

fn create(cx: &mut Context<'_>, parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["create"])?;
    let or_replace = eat(parser, &["or", "replace"]);
    let temporary = eat(parser, &["local", "temporary"])
        || eat(parser, &["local", "temp"])
        || eat(parser, &["temporary"])
        || eat(parser, &["temp"]);
    let word = next_word(parser).unwrap_or_default();
    let replaceable = matches!(word.as_str(), "view" | "materialized");
    if or_replace && !replaceable {
        return Err(Error::unsupported(format!("CREATE OR REPLACE {}", word.to_uppercase())).into());
    }
    if temporary && !matches!(word.as_str(), "table" | "view" | "sequence") {
        return Err(Error::unsupported(format!("CREATE TEMPORARY {}", word.to_uppercase())).into());
    }
    match word.as_str() {
        "table" => {
            parser.advance_token();
            let names = cx.notes.columns.take();
            let table = parser.parse_create_table(false, temporary, None, false)?;
            let with_data = if eat(parser, &["with", "no", "data"]) {
                Some(false)
            } else if eat(parser, &["with", "data"]) {
                Some(true)
            } else {
                None
            };
            let mut created = strict::create_table(table, with_data, &mut cx.notes)?;
            if let (StatementAst::CreateTableAs(table), Some(names)) = (&mut created, names) {
                table.columns = names;
            }
            Ok(created)
        }
        "view" => view(cx, parser, or_replace, temporary),
        "materialized" => materialized_view(cx, parser, or_replace),
        "unique" | "index" => {
            let unique = eat(parser, &["unique"]);
            expect(parser, &["index"])?;
            let index = parser.parse_create_index(unique)?;
            Ok(strict::create_index(index)?)
        }
        "schema" => {
            parser.advance_token();
            let if_not_exists = if_not_exists(parser);
            if eat(parser, &["authorization"]) {
                let owner = parser.parse_identifier()?;
                let name = ObjectName::from(owner.clone());
                return Ok(StatementAst::CreateSchema(CreateSchema { name, if_not_exists, owner: Some(owner) }));
            }
            let name = name(parser)?;
            let owner = if eat(parser, &["authorization"]) { Some(parser.parse_identifier()?) } else { None };
            Ok(StatementAst::CreateSchema(CreateSchema { name, if_not_exists, owner }))
        }
        "sequence" => sequence(parser, temporary),
        "policy" => policy(parser),
        "merge" => {
            expect(parser, &["merge", "resolver"])?;
            let name = name(parser)?;
            expect(parser, &["language"])?;
            let language = parser.parse_identifier()?;
            expect(parser, &["as"])?;
            let source = parser.parse_literal_string()?;
            Ok(extension(Extension::CreateMergeResolver { name, language, source }))
        }
        "type" => {
            parser.advance_token();
            let name = name(parser)?;
            if !eat(parser, &["of"]) {
                return Err(Error::unsupported("CREATE TYPE").into());
            }
            let table = self::name(parser)?;
            let (definitions, constraints) = parser.parse_columns()?;
            let (columns, constraints) = strict::columns(definitions, constraints)?;
            let options = with_options(parser)?;
            Ok(extension(Extension::CreateTypeOf { name, table, columns, constraints, options }))
        }
        "resource" => {
            expect(parser, &["resource", "group"])?;
            let name = parser.parse_identifier()?;
            Ok(extension(Extension::CreateResourceGroup { name, options: with_options(parser)? }))
        }
        "" => expected(parser, "what to create"),
        other => Err(Error::unsupported(format!("CREATE {}", other.to_uppercase())).into()),
    }
}

fn extension(extension: Extension) -> StatementAst {
    StatementAst::Extension(Box::new(extension))
}

/// `VIEW [IF NOT EXISTS] name [(columns)] AS query`.
fn view(cx: &mut Context<'_>, parser: &mut Parser<'_>, or_replace: bool, temporary: bool) -> Parsed<StatementAst> {
    expect(parser, &["view"])?;
    let if_not_exists = if_not_exists(parser);
    let name = name(parser)?;
    let columns = columns(parser)?;
    if peek(parser, &["with"]) {
        return Err(Error::unsupported("WITH (…) on a view").into());
    }
    expect(parser, &["as"])?;
    let (query, query_text) = view_query(cx, parser)?;
    if peek(parser, &["with"]) {
        return Err(Error::unsupported("WITH CHECK OPTION on a view").into());
    }
    let view = CreateView { name, or_replace, temporary, if_not_exists, columns, query, query_text };
    Ok(StatementAst::CreateView(Box::new(view)))
}

/// The query of a view, and its text.
fn view_query(cx: &mut Context<'_>, parser: &mut Parser<'_>) -> Parsed<(Box<Query>, Arc<str>)> {
    let start = parser.peek_token_ref().span.start;
    let query = strict::query(parser.parse_query()?)?;
    let end = parser.get_current_token().span.end;
    let (text, _) = cx.rest(start, end);
    Ok((query, text))
}

fn materialized_view(cx: &mut Context<'_>, parser: &mut Parser<'_>, or_replace: bool) -> Parsed<StatementAst> {
    expect(parser, &["materialized", "view"])?;
    let if_not_exists = if_not_exists(parser);
    let name = name(parser)?;
    let columns = columns(parser)?;
    let options = with_options(parser)?;
    expect(parser, &["as"])?;
    let (query, query_text) = view_query(cx, parser)?;
    let emit = cx.notes.emit.take();
    Ok(extension(Extension::CreateMaterializedView {
        name,
        or_replace,
        if_not_exists,
        columns,
        options,
        query,
        query_text,
        emit,
    }))
}

fn refresh(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["refresh", "materialized", "view"])?;
    Ok(extension(Extension::RefreshMaterializedView { name: name(parser)? }))
}

/// `WITH (name = value, …)`, or nothing.
fn with_options(parser: &mut Parser<'_>) -> Parsed<Vec<TableOption>> {
    if eat(parser, &["with"]) { options(parser) } else { Ok(Vec::new()) }
}

/// `(name = value, name => value, name)`.
fn options(parser: &mut Parser<'_>) -> Parsed<Vec<TableOption>> {
    parser.expect_token(&Token::LParen)?;
    let mut options = Vec::new();
    loop {
        let mut name = fold(&parser.parse_identifier()?);
        while parser.consume_token(&Token::Period) {
            name = format!("{name}.{}", fold(&parser.parse_identifier()?));
        }
        let value = if parser.consume_token(&Token::Eq) || parser.consume_token(&Token::RArrow) {
            Some(parser.parse_expr()?)
        } else {
            None
        };
        options.push(TableOption { name, value });
        if !parser.consume_token(&Token::Comma) {
            break;
        }
    }
    parser.expect_token(&Token::RParen)?;
    Ok(options)
}

/// `SEQUENCE [IF NOT EXISTS] name [AS type] options`.
fn sequence(parser: &mut Parser<'_>, temporary: bool) -> Parsed<StatementAst> {
    expect(parser, &["sequence"])?;
    let if_not_exists = if_not_exists(parser);
    let name = name(parser)?;
    let mut data_type: Option<DataType> = None;
    let mut options = SequenceOptions::default();
    let mut owned_by = None;
    loop {
        if data_type.is_none() && eat(parser, &["as"]) {
            data_type = Some(parser.parse_data_type()?);
        } else if eat(parser, &["owned", "by"]) {
            owned_by = owner(parser)?;
        } else if !sequence_option(parser, &mut options)? {
            break;
        }
    }
    Ok(StatementAst::CreateSequence(Box::new(CreateSequence {
        name,
        temporary,
        if_not_exists,
        data_type,
        options,
        owned_by,
    })))
}

/// `NONE` or `table.column`.
fn owner(parser: &mut Parser<'_>) -> Parsed<Option<ObjectName>> {
    if eat(parser, &["none"]) { Ok(None) } else { name(parser).map(Some) }
}

/// One option of a sequence, if one comes next.
fn sequence_option(parser: &mut Parser<'_>, options: &mut SequenceOptions) -> Parsed<bool> {
    if eat(parser, &["increment"]) {
        eat(parser, &["by"]);
        options.increment = Some(integer(parser)?);
    } else if eat(parser, &["minvalue"]) {
        options.min = Some(Some(integer(parser)?));
    } else if eat(parser, &["no", "minvalue"]) {
        options.min = Some(None);
    } else if eat(parser, &["maxvalue"]) {
        options.max = Some(Some(integer(parser)?));
    } else if eat(parser, &["no", "maxvalue"]) {
        options.max = Some(None);
    } else if eat(parser, &["start"]) {
        eat(parser, &["with"]);
        options.start = Some(integer(parser)?);
    } else if eat(parser, &["cache"]) {
        options.cache = Some(integer(parser)?);
    } else if eat(parser, &["no", "cycle"]) {
        options.cycle = Some(false);
    } else if eat(parser, &["cycle"]) {
        options.cycle = Some(true);
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// An integer with sign.
fn integer(parser: &mut Parser<'_>) -> Parsed<i64> {
    let negative = parser.consume_token(&Token::Minus);
    if !negative {
        // A plus sign says nothing.
        let _ = parser.consume_token(&Token::Plus);
    }
    match parser.peek_token_ref().token.clone() {
        Token::Number(digits, _) => match format!("{}{digits}", if negative { "-" } else { "" }).parse() {
            Ok(number) => {
                parser.advance_token();
                Ok(number)
            }
            Err(_) => expected(parser, "an integer of 64 bits"),
        },
        _ => expected(parser, "an integer"),
    }
}

fn alter(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["alter"])?;
    match next_word(parser).unwrap_or_default().as_str() {
        "table" => alter_table(parser),
        "sequence" => alter_sequence(parser),
        "view" => rename(parser, ObjectKind::View),
        "index" => rename(parser, ObjectKind::Index),
        "schema" => rename(parser, ObjectKind::Schema),
        "materialized" => {
            expect(parser, &["materialized", "view"])?;
            let name = name(parser)?;
            expect(parser, &["set"])?;
            Ok(extension(Extension::AlterMaterializedView { name, options: options(parser)? }))
        }
        "" => expected(parser, "what to alter"),
        other => Err(Error::unsupported(format!("ALTER {}", other.to_uppercase())).into()),
    }
}

fn rename(parser: &mut Parser<'_>, kind: ObjectKind) -> Parsed<StatementAst> {
    parser.advance_token();
    let if_exists = if_exists(parser);
    let name = name(parser)?;
    if !eat(parser, &["rename", "to"]) {
        let action = next_word(parser).unwrap_or_default().to_uppercase();
        return Err(Error::unsupported(format!("ALTER {} … {action}", kind.word().to_uppercase())).into());
    }
    let to = self::name(parser)?;
    Ok(StatementAst::Rename(Rename { kind, name, if_exists, to }))
}

fn alter_sequence(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    parser.advance_token();
    let if_exists = if_exists(parser);
    let name = name(parser)?;
    if eat(parser, &["rename", "to"]) {
        let to = self::name(parser)?;
        return Ok(StatementAst::Rename(Rename { kind: ObjectKind::Sequence, name, if_exists, to }));
    }
    let mut options = SequenceOptions::default();
    let mut restart = None;
    let mut owned_by = None;
    let mut any = false;
    loop {
        if eat(parser, &["restart"]) {
            restart = Some(restart_value(parser)?);
        } else if eat(parser, &["owned", "by"]) {
            owned_by = Some(owner(parser)?);
        } else if !sequence_option(parser, &mut options)? {
            break;
        }
        any = true;
    }
    if !any {
        return expected(parser, "an option of the sequence");
    }
    Ok(StatementAst::AlterSequence(Box::new(AlterSequence { name, if_exists, options, restart, owned_by })))
}

/// What follows `RESTART`.
fn restart_value(parser: &mut Parser<'_>) -> Parsed<Option<i64>> {
    let with = eat(parser, &["with"]);
    let number = matches!(parser.peek_token_ref().token, Token::Number(..) | Token::Minus | Token::Plus);
    if with || number { Ok(Some(integer(parser)?)) } else { Ok(None) }
}

/// `{ SET GENERATED … | SET option | RESTART [WITH n] } …` of an identity column.
fn alter_identity(parser: &mut Parser<'_>, column: Ident) -> Parsed<AlterOperation> {
    let mut options = SequenceOptions::default();
    let (mut always, mut restart) = (None, None);
    loop {
        if eat(parser, &["restart"]) {
            restart = Some(restart_value(parser)?);
        } else if eat(parser, &["set", "generated", "always"]) {
            always = Some(true);
        } else if eat(parser, &["set", "generated", "by", "default"]) {
            always = Some(false);
        } else if eat(parser, &["set"]) {
            if !sequence_option(parser, &mut options)? {
                return expected(parser, "an option of the identity's sequence");
            }
        } else {
            return Ok(AlterOperation::AlterIdentity { column, always, options, restart });
        }
    }
}

fn alter_table(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["table"])?;
    let if_exists = if_exists(parser);
    if eat(parser, &["only"]) {
        return Err(Error::unsupported("ALTER TABLE ONLY").into());
    }
    let name = name(parser)?;
    let mut operations = Vec::new();
    loop {
        operations.push(alter_operation(parser)?);
        if !parser.consume_token(&Token::Comma) {
            break;
        }
    }
    Ok(StatementAst::AlterTable(Box::new(AlterTable { name, if_exists, operations })))
}

/// One change of a table: the forms that sqlparser lacks first.
fn alter_operation(parser: &mut Parser<'_>) -> Parsed<AlterOperation> {
    if eat(parser, &["set", "schema"]) {
        return Ok(AlterOperation::SetSchema(parser.parse_identifier()?));
    }
    if peek(parser, &["add", "system"]) || peek(parser, &["drop", "system"]) {
        // sqlparser would read a column named "system".
        return Err(Error::unsupported("SYSTEM VERSIONING in ALTER TABLE").into());
    }
    if peek(parser, &["add", "period"]) || peek(parser, &["drop", "period"]) {
        return Err(Error::unsupported("PERIOD FOR in ALTER TABLE").into());
    }
    if peek(parser, &["alter"]) {
        let offset = if peek(parser, &["alter", "column"]) { 2 } else { 1 };
        let after = |words: &[&str]| {
            words.iter().enumerate().all(|(i, wanted)| {
                matches!(&parser.peek_nth_token_ref(offset + 1 + i).token, Token::Word(word) if word.value.eq_ignore_ascii_case(wanted))
            })
        };
        let merges = after(&["set", "merge", "using"]);
        let drops = after(&["drop", "identity"]);
        let adds = after(&["add", "generated"]);
        let counts = ["generated", "increment", "minvalue", "maxvalue", "no", "start", "cache", "cycle"]
            .iter()
            .any(|word| after(&["set", *word]))
            || after(&["restart"]);
        if merges || drops || adds || counts {
            for _ in 0..offset {
                parser.advance_token();
            }
            let column = parser.parse_identifier()?;
            if merges {
                expect(parser, &["set", "merge", "using"])?;
                return Ok(AlterOperation::SetMerge { column, resolver: name(parser)? });
            }
            if counts {
                return alter_identity(parser, column);
            }
            if adds {
                expect(parser, &["add"])?;
                return Ok(AlterOperation::AddIdentity { column, identity: identity(parser)? });
            }
            expect(parser, &["drop", "identity"])?;
            return Ok(AlterOperation::DropIdentity { column, if_exists: if_exists(parser) });
        }
    }
    let operation = parser.parse_alter_table_operation()?;
    Ok(strict::alter_operation(operation)?)
}

fn drop_object(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["drop"])?;
    if eat(parser, &["materialized", "view"]) {
        let if_exists = if_exists(parser);
        let names = parser.parse_comma_separated(|parser| parser.parse_object_name(false))?;
        return Ok(extension(Extension::DropMaterializedView { names, if_exists, cascade: cascade(parser) }));
    }
    if eat(parser, &["policy"]) {
        let if_exists = if_exists(parser);
        let name = parser.parse_identifier()?;
        expect(parser, &["on"])?;
        let table = self::name(parser)?;
        cascade(parser);
        return Ok(extension(Extension::DropPolicy { name, table, if_exists }));
    }
    let kind = match next_word(parser).unwrap_or_default().as_str() {
        "table" => ObjectKind::Table,
        "view" => ObjectKind::View,
        "index" => ObjectKind::Index,
        "schema" => ObjectKind::Schema,
        "sequence" => ObjectKind::Sequence,
        "" => return expected(parser, "what to drop"),
        other => return Err(Error::unsupported(format!("DROP {}", other.to_uppercase())).into()),
    };
    parser.advance_token();
    if kind == ObjectKind::Index {
        eat(parser, &["concurrently"]);
    }
    let if_exists = if_exists(parser);
    let names = parser.parse_comma_separated(|parser| parser.parse_object_name(false))?;
    Ok(StatementAst::Drop(Drop { kind, names, if_exists, cascade: cascade(parser) }))
}

fn comment(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["comment", "on"])?;
    let word = next_word(parser).unwrap_or_default();
    let kind = match word.as_str() {
        "table" => Some(ObjectKind::Table),
        "view" => Some(ObjectKind::View),
        "index" => Some(ObjectKind::Index),
        "schema" => Some(ObjectKind::Schema),
        "sequence" => Some(ObjectKind::Sequence),
        "column" | "database" => None,
        "" => return expected(parser, "what the comment is on"),
        other => return Err(Error::unsupported(format!("COMMENT ON {}", other.to_uppercase())).into()),
    };
    parser.advance_token();
    let full = name(parser)?;
    let target = match kind {
        Some(kind) => CommentTarget::Object(kind, full),
        None if word == "database" => CommentTarget::Database(full),
        None => {
            let mut parts = full.0;
            let column = parts.pop().and_then(|part| part.as_ident().cloned());
            match column {
                Some(column) if !parts.is_empty() => CommentTarget::Column { table: ObjectName(parts), column },
                _ => return Err(Error::syntax("syntax error: COMMENT ON COLUMN needs table.column").into()),
            }
        }
    };
    expect(parser, &["is"])?;
    let comment = if eat(parser, &["null"]) { None } else { Some(parser.parse_literal_string()?) };
    Ok(StatementAst::CommentOn(CommentOn { target, comment }))
}

fn analyze(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    parser.advance_token();
    eat(parser, &["verbose"]);
    if at_end(parser) {
        return Ok(StatementAst::Analyze(Analyze { table: None, columns: Vec::new() }));
    }
    Ok(StatementAst::Analyze(Analyze { table: Some(name(parser)?), columns: columns(parser)? }))
}

fn vacuum(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    parser.advance_token();
    let mut vacuum = Vacuum { table: None, full: false, analyze: false };
    if parser.consume_token(&Token::LParen) {
        loop {
            vacuum_word(parser, &mut vacuum)?;
            if !parser.consume_token(&Token::Comma) {
                break;
            }
        }
        parser.expect_token(&Token::RParen)?;
    } else {
        while matches!(next_word(parser).as_deref(), Some("full" | "freeze" | "verbose" | "analyze")) {
            vacuum_word(parser, &mut vacuum)?;
        }
    }
    if !at_end(parser) {
        vacuum.table = Some(name(parser)?);
    }
    Ok(StatementAst::Vacuum(vacuum))
}

fn vacuum_word(parser: &mut Parser<'_>, vacuum: &mut Vacuum) -> Parsed<()> {
    match next_word(parser).as_deref() {
        Some("full") => vacuum.full = true,
        Some("analyze") => vacuum.analyze = true,
        Some("verbose") => {}
        Some(other) => return Err(Error::unsupported(format!("VACUUM {}", other.to_uppercase())).into()),
        None => return expected(parser, "FULL, ANALYZE or VERBOSE"),
    }
    parser.advance_token();
    Ok(())
}

// ------------------------------------------------------------------------------------------------------------- session

fn explain(cx: &mut Context<'_>, parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["explain"])?;
    let mut explain =
        (eat(parser, &["analyze"]) || eat(parser, &["analyse"]), eat(parser, &["verbose"]), ExplainFormat::default());
    let options = parser.peek_token_ref().token == Token::LParen
        && !matches!(&parser.peek_nth_token_ref(1).token, Token::LParen)
        && !matches!(&parser.peek_nth_token_ref(1).token, Token::Word(word)
            if matches!(word.keyword, Keyword::SELECT | Keyword::WITH | Keyword::VALUES | Keyword::TABLE));
    if options {
        parser.advance_token();
        loop {
            explain_option(parser, &mut explain)?;
            if !parser.consume_token(&Token::Comma) {
                break;
            }
        }
        parser.expect_token(&Token::RParen)?;
    }
    let (analyze, verbose, format) = explain;
    Ok(StatementAst::Explain(Explain { analyze, verbose, format, inner: cx.inner(parser)? }))
}

fn explain_option(parser: &mut Parser<'_>, explain: &mut (bool, bool, ExplainFormat)) -> Parsed<()> {
    let name = fold(&parser.parse_identifier()?);
    if name == "format" {
        let value = option_value(parser)?.text().to_lowercase();
        explain.2 = match value.as_str() {
            "text" | "indent" => ExplainFormat::Text,
            "json" | "pgjson" => ExplainFormat::Json,
            "tree" => ExplainFormat::Tree,
            "graphviz" => ExplainFormat::Graphviz,
            other => return Err(Error::unsupported(format!("EXPLAIN format {other}")).into()),
        };
        return Ok(());
    }
    let on = match parser.peek_token_ref().token {
        Token::Comma | Token::RParen => true,
        _ => match option_value(parser)?.switch() {
            Some(on) => on,
            None => return expected(parser, "on or off"),
        },
    };
    match name.as_str() {
        "analyze" | "analyse" => explain.0 = on,
        "verbose" => explain.1 = on,
        // These only ask for more or less output than we always give; switching them off or on changes nothing that runs.
        "costs" | "timing" | "summary" | "buffers" => {}
        other => return Err(Error::unsupported(format!("EXPLAIN option {}", other.to_uppercase())).into()),
    }
    Ok(())
}

fn describe(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    parser.advance_token();
    eat(parser, &["table"]);
    Ok(StatementAst::Show(Show::Columns { table: name(parser)?, like: None }))
}

fn begin(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    if eat(parser, &["start"]) {
        expect(parser, &["transaction"])?;
    } else {
        expect(parser, &["begin"])?;
        if eat(parser, &["deterministic", "group"]) {
            return Ok(extension(Extension::BeginDeterministic { group: parser.parse_literal_string()? }));
        }
        if !eat(parser, &["work"]) {
            eat(parser, &["transaction"]);
        }
    }
    Ok(StatementAst::Begin(transaction_modes(parser)?))
}

fn transaction_modes(parser: &mut Parser<'_>) -> Parsed<TransactionModes> {
    let mut modes = TransactionModes::default();
    let mut comma = false;
    loop {
        if eat(parser, &["isolation", "level"]) {
            modes.isolation = Some(if eat(parser, &["serializable"]) {
                Isolation::Serializable
            } else if eat(parser, &["repeatable", "read"]) || eat(parser, &["snapshot"]) {
                Isolation::Snapshot
            } else if eat(parser, &["read", "committed"]) || eat(parser, &["read", "uncommitted"]) {
                Isolation::ReadCommitted
            } else {
                return expected(parser, "an isolation level");
            });
        } else if eat(parser, &["read", "only"]) {
            modes.read_only = Some(true);
        } else if eat(parser, &["read", "write"]) {
            modes.read_only = Some(false);
        } else if eat(parser, &["not", "deferrable"]) {
            modes.deferrable = Some(false);
        } else if eat(parser, &["deferrable"]) {
            modes.deferrable = Some(true);
        } else if comma {
            return expected(parser, "a transaction mode");
        } else {
            return Ok(modes);
        }
        comma = parser.consume_token(&Token::Comma);
    }
}

/// `COMMIT`, `END`, `ROLLBACK`, `ABORT`.
fn finish(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    let commit = matches!(next_word(parser).as_deref(), Some("commit" | "end"));
    let abort = peek(parser, &["abort"]);
    parser.advance_token();
    if peek(parser, &["prepared"]) {
        return Err(Error::unsupported("PREPARED transactions").into());
    }
    if !eat(parser, &["work"]) {
        eat(parser, &["transaction"]);
    }
    if !commit && !abort && eat(parser, &["to"]) {
        eat(parser, &["savepoint"]);
        return Ok(StatementAst::RollbackTo(parser.parse_identifier()?));
    }
    let chain = if eat(parser, &["and"]) {
        let no = eat(parser, &["no"]);
        expect(parser, &["chain"])?;
        !no
    } else {
        false
    };
    Ok(if commit { StatementAst::Commit { chain } } else { StatementAst::Rollback { chain } })
}

/// A name with dots, in lower case unless quoted.
fn variable(parser: &mut Parser<'_>) -> Parsed<String> {
    let mut name = fold(&parser.parse_identifier()?);
    while parser.consume_token(&Token::Period) {
        name.push('.');
        name.push_str(&fold(&parser.parse_identifier()?));
    }
    Ok(name)
}

fn set(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["set"])?;
    if eat(parser, &["session", "characteristics", "as", "transaction"]) {
        return Ok(StatementAst::Set(Set::SessionTransaction(transaction_modes(parser)?)));
    }
    if eat(parser, &["transaction"]) {
        if peek(parser, &["snapshot"]) {
            return Err(Error::unsupported("SET TRANSACTION SNAPSHOT").into());
        }
        return Ok(StatementAst::Set(Set::Transaction(transaction_modes(parser)?)));
    }
    if eat(parser, &["constraints"]) {
        return Err(Error::unsupported("SET CONSTRAINTS").into());
    }
    if peek(parser, &["session", "authorization"]) || peek(parser, &["role"]) {
        return Err(Error::unsupported("changing the role of a session").into());
    }
    let local = eat(parser, &["local"]);
    if !local {
        eat(parser, &["session"]);
    }
    if eat(parser, &["time", "zone"]) {
        let values = set_values(parser)?;
        // `SET TIME ZONE LOCAL` is the default.
        let default = matches!(values.as_slice(), [OptionValue::Word(word)] if word == "local");
        let values = if default { Vec::new() } else { values };
        return Ok(StatementAst::Set(Set::Variable { name: "timezone".to_owned(), values, local }));
    }
    if eat(parser, &["names"]) {
        let values = if at_end(parser) { Vec::new() } else { set_values(parser)? };
        return Ok(StatementAst::Set(Set::Variable { name: "client_encoding".to_owned(), values, local }));
    }
    if eat(parser, &["schema"]) {
        let values = set_values(parser)?;
        return Ok(StatementAst::Set(Set::Variable { name: "search_path".to_owned(), values, local }));
    }
    let name = variable(parser)?;
    if !parser.consume_token(&Token::Eq) && !eat(parser, &["to"]) {
        return expected(parser, "= or TO");
    }
    let values = set_values(parser)?;
    Ok(StatementAst::Set(Set::Variable { name, values, local }))
}

/// `DEFAULT` (no values) or values with commas.
fn set_values(parser: &mut Parser<'_>) -> Parsed<Vec<OptionValue>> {
    if eat(parser, &["default"]) {
        return Ok(Vec::new());
    }
    let mut values = Vec::new();
    loop {
        // `on` is reserved in expressions.
        if eat(parser, &["on"]) {
            values.push(OptionValue::Word("on".to_owned()));
        } else {
            values.push(setting_value(&parser.parse_expr()?));
        }
        if !parser.consume_token(&Token::Comma) {
            return Ok(values);
        }
    }
}

fn show(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["show"])?;
    let show = if eat(parser, &["all"]) {
        Show::All
    } else if eat(parser, &["time", "zone"]) {
        Show::Variable("timezone".to_owned())
    } else if eat(parser, &["transaction", "isolation", "level"]) {
        Show::Variable("transaction_isolation".to_owned())
    } else if eat(parser, &["tables"]) {
        let schema = if eat(parser, &["from"]) || eat(parser, &["in"]) { Some(name(parser)?) } else { None };
        Show::Tables { schema, like: like(parser)? }
    } else if eat(parser, &["columns", "from"]) || eat(parser, &["columns", "in"]) {
        Show::Columns { table: name(parser)?, like: like(parser)? }
    } else if eat(parser, &["schemas"]) {
        Show::Schemas { like: like(parser)? }
    } else if eat(parser, &["databases"]) || eat(parser, &["catalogs"]) {
        Show::Catalogs
    } else if eat(parser, &["functions"]) {
        Show::Functions { like: like(parser)? }
    } else if eat(parser, &["create", "table"]) {
        Show::Create { kind: ObjectKind::Table, name: name(parser)? }
    } else if eat(parser, &["create", "view"]) {
        Show::Create { kind: ObjectKind::View, name: name(parser)? }
    } else {
        Show::Variable(variable(parser)?)
    };
    Ok(StatementAst::Show(show))
}

fn like(parser: &mut Parser<'_>) -> Parsed<Option<String>> {
    if eat(parser, &["like"]) { Ok(Some(parser.parse_literal_string()?)) } else { Ok(None) }
}

fn reset(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["reset"])?;
    if eat(parser, &["all"]) {
        return Ok(StatementAst::Reset(None));
    }
    if eat(parser, &["time", "zone"]) {
        return Ok(StatementAst::Reset(Some("timezone".to_owned())));
    }
    Ok(StatementAst::Reset(Some(variable(parser)?)))
}

fn discard(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["discard"])?;
    let discard = match next_word(parser).as_deref() {
        Some("all") => Discard::All,
        Some("plans") => Discard::Plans,
        Some("sequences") => Discard::Sequences,
        Some("temp" | "temporary") => Discard::Temporary,
        _ => return expected(parser, "ALL, PLANS, SEQUENCES or TEMP"),
    };
    parser.advance_token();
    Ok(StatementAst::Discard(discard))
}

fn prepare(cx: &mut Context<'_>, parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["prepare"])?;
    if eat(parser, &["transaction"]) {
        return Err(Error::unsupported("PREPARE TRANSACTION").into());
    }
    let name = parser.parse_identifier()?;
    let types = if parser.consume_token(&Token::LParen) {
        let types = parser.parse_comma_separated(Parser::parse_data_type)?;
        parser.expect_token(&Token::RParen)?;
        types
    } else {
        Vec::new()
    };
    expect(parser, &["as"])?;
    if !["select", "with", "values", "table", "insert", "update", "delete", "merge"]
        .iter()
        .any(|word| peek(parser, &[word]))
        && parser.peek_token_ref().token != Token::LParen
    {
        return expected(parser, "a query, INSERT, UPDATE, DELETE or MERGE");
    }
    Ok(StatementAst::Prepare(Prepare { name, types, inner: cx.inner(parser)? }))
}

fn execute(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["execute"])?;
    let name = parser.parse_identifier()?;
    let values = if parser.consume_token(&Token::LParen) {
        let values = if parser.peek_token_ref().token == Token::RParen {
            Vec::new()
        } else {
            parser.parse_comma_separated(Parser::parse_expr)?
        };
        parser.expect_token(&Token::RParen)?;
        values
    } else {
        Vec::new()
    };
    let values = values.into_iter().map(strict::expr).collect::<Result<_, _>>()?;
    Ok(StatementAst::Execute(Execute { name, values }))
}

fn deallocate(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["deallocate"])?;
    eat(parser, &["prepare"]);
    if eat(parser, &["all"]) {
        return Ok(StatementAst::Deallocate(None));
    }
    Ok(StatementAst::Deallocate(Some(parser.parse_identifier()?)))
}

fn kill(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["kill"])?;
    eat(parser, &["query"]);
    Ok(StatementAst::Cancel { query: parser.parse_literal_uint()? })
}

/// `BACKUP TO 'url'`.
fn backup(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["backup"])?;
    expect(parser, &["to"])?;
    Ok(StatementAst::Backup { url: parser.parse_literal_string()? })
}

// ----------------------------------------------------------------------------------------------------------- extensions

/// `CALL procedure(arguments)`.
fn procedure(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["call"])?;
    let name = name(parser)?;
    let mut arguments = Vec::new();
    parser.expect_token(&Token::LParen)?;
    if !parser.consume_token(&Token::RParen) {
        loop {
            // `from => …`: sqlparser refuses reserved words as names of arguments.
            let named = matches!(parser.peek_nth_token_ref(1).token, Token::RArrow | Token::Assignment);
            let word = match &parser.peek_token_ref().token {
                Token::Word(word) if named => Some(word.value.to_lowercase()),
                _ => None,
            };
            let argument = match word {
                Some(name) => {
                    parser.advance_token();
                    parser.advance_token();
                    (Some(name), parser.parse_expr()?)
                }
                None => match parser.parse_function_args()? {
                    FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => (None, expr),
                    other => return Err(Error::unsupported(format!("the argument {other}")).into()),
                },
            };
            arguments.push((argument.0, strict::expr(argument.1)?));
            if !parser.consume_token(&Token::Comma) {
                break;
            }
        }
        parser.expect_token(&Token::RParen)?;
    }
    Ok(extension(Extension::Call { name, arguments }))
}

/// `CREATE POLICY name ON table AS { ROW | COLUMN | DP } …`, else PostgreSQL's form.
fn policy(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    let postgres = parser.maybe_parse(|parser| {
        // `CREATE POLICY` is behind; sqlparser expects to start after it.
        parser.advance_token();
        parser.parse_create_policy()
    })?;
    if let Some(policy) = postgres {
        let created = CreatePolicy {
            name: policy.name.clone(),
            table: policy.table_name.clone(),
            body: PolicyBody::Postgres(Box::new(policy)),
        };
        return Ok(extension(Extension::CreatePolicy(created)));
    }
    expect(parser, &["policy"])?;
    let name = parser.parse_identifier()?;
    expect(parser, &["on"])?;
    let table = self::name(parser)?;
    expect(parser, &["as"])?;
    let body = if eat(parser, &["row"]) {
        expect(parser, &["using"])?;
        parser.expect_token(&Token::LParen)?;
        let using = strict::expr(parser.parse_expr()?)?;
        parser.expect_token(&Token::RParen)?;
        PolicyBody::Row { using }
    } else if eat(parser, &["column"]) {
        let columns = parser.parse_parenthesized_column_list(IsOptional::Mandatory, false)?;
        expect(parser, &["using", "mask"])?;
        PolicyBody::Column { columns, options: with_options(parser)? }
    } else if eat(parser, &["dp"]) {
        expect(parser, &["using"])?;
        PolicyBody::DifferentialPrivacy { options: options(parser)? }
    } else {
        return expected(parser, "ROW, COLUMN, DP, PERMISSIVE or RESTRICTIVE");
    };
    Ok(extension(Extension::CreatePolicy(CreatePolicy { name, table, body })))
}

fn apply_policy(parser: &mut Parser<'_>) -> Parsed<StatementAst> {
    expect(parser, &["apply", "policy"])?;
    let name = parser.parse_identifier()?;
    expect(parser, &["on"])?;
    parser.expect_token(&Token::LParen)?;
    let query = strict::query(parser.parse_query()?)?;
    parser.expect_token(&Token::RParen)?;
    Ok(extension(Extension::ApplyPolicy { name, query }))
}

/// A clause behind a column's type that sqlparser handed over as tokens.
pub(crate) enum ColumnClause {
    /// `MERGE policy(…)`, `INDEX method (…)`.
    Later(TableClause),
    /// `GENERATED … AS IDENTITY (…)`.
    Identity(Identity),
}

/// Reads such a clause.
pub(crate) fn column_clause(column: &Ident, tokens: &[Token]) -> Parsed<ColumnClause> {
    let dialect = super::dialect::LatticeDialect::for_tokens(tokens.len());
    let mut parser = Parser::new(&dialect).with_tokens(tokens.to_vec());
    let clause = if peek(&parser, &["generated"]) {
        ColumnClause::Identity(identity(&mut parser)?)
    } else if eat(&mut parser, &["merge"]) {
        let policy = fold(&parser.parse_identifier()?);
        let mut arguments = Vec::new();
        if parser.consume_token(&Token::LParen) && !parser.consume_token(&Token::RParen) {
            arguments = parser.parse_comma_separated(Parser::parse_expr)?;
            parser.expect_token(&Token::RParen)?;
        }
        ColumnClause::Later(TableClause::ColumnMerge { column: column.clone(), policy, arguments })
    } else {
        expect(&mut parser, &["index"])?;
        let method = fold(&parser.parse_identifier()?);
        let options = if parser.peek_token_ref().token == Token::LParen { options(&mut parser)? } else { Vec::new() };
        ColumnClause::Later(TableClause::ColumnIndex { column: column.clone(), method, options })
    };
    if at_end(&parser) { Ok(clause) } else { expected(&parser, "the end of the clause") }
}

/// `GENERATED { ALWAYS | BY DEFAULT } AS IDENTITY [(options)]`.
fn identity(parser: &mut Parser<'_>) -> Parsed<Identity> {
    expect(parser, &["generated"])?;
    let always = eat(parser, &["always"]);
    if !always {
        expect(parser, &["by", "default"])?;
    }
    expect(parser, &["as", "identity"])?;
    let mut sequence = SequenceOptions::default();
    if parser.consume_token(&Token::LParen) {
        while sequence_option(parser, &mut sequence)? {}
        parser.expect_token(&Token::RParen)?;
    }
    Ok(Identity { always, sequence })
}

/// What sqlparser read when we expected a row-changing statement.
pub(crate) fn wrong_statement(statement: &Sql) -> Error {
    let text = statement.to_string();
    let words: Vec<&str> = text.split_whitespace().take(2).collect();
    Error::unsupported(words.join(" "))
}

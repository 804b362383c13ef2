//! Where a statement names what does not exist: planning knows names, not places, so a failed name is looked up in the text.
//!
//! Only errors that quote a name of the statement are placed, and only on the error path. A name inside a view that the
//! statement reads is not in the text and gets no place.

use base::SqlState;
use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use super::dialect::LatticeDialect;
use super::source::Locator;
use crate::Error;

/// What kind of name failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Column,
    Relation,
    Schema,
    Function,
}

/// Adds the place of the name an error is about, in characters of `text` from 1.
pub(crate) fn locate(error: Error, text: &str) -> Error {
    if error.position.is_some() {
        return error;
    }
    let named = match error.sqlstate {
        SqlState::UNDEFINED_COLUMN | SqlState::AMBIGUOUS_COLUMN => Named::Column,
        SqlState::UNDEFINED_TABLE => Named::Relation,
        SqlState::INVALID_SCHEMA_NAME | SqlState::INVALID_CATALOG_NAME => Named::Schema,
        SqlState::UNDEFINED_FUNCTION => Named::Function,
        _ => return error,
    };
    let Some(name) = error.message.split('"').nth(1) else { return error };
    match find(text, name, named) {
        Some(position) => error.at(position),
        None => error,
    }
}

fn find(text: &str, name: &str, named: Named) -> Option<usize> {
    let dialect = LatticeDialect::for_text(false);
    let mut tokens = Tokenizer::new(&dialect, text).tokenize_with_location().ok()?;
    tokens.retain(|token| !matches!(token.token, Token::Whitespace(_) | Token::EOF));
    let wanted: Vec<&str> = name.split('.').collect();
    let mut at = 0;
    while at < tokens.len() {
        let parts = chain(&tokens[at..]);
        if parts.is_empty() {
            at += 1;
            continue;
        }
        let end = at + 2 * parts.len() - 1;
        if fits(&parts, &wanted, named) && stands(&tokens, at, end, named) {
            return Some(Locator::new(text).place(tokens[at].span.start).character);
        }
        at = end;
    }
    None
}

/// The parts of the dotted name that starts here, folded.
fn chain(tokens: &[TokenWithSpan]) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = tokens;
    while let [TokenWithSpan { token: Token::Word(word), .. }, after @ ..] = rest {
        parts.push(if word.quote_style.is_some() { word.value.clone() } else { word.value.to_lowercase() });
        match after {
            [TokenWithSpan { token: Token::Period, .. }, next @ ..]
                if matches!(next.first(), Some(TokenWithSpan { token: Token::Word(_), .. })) =>
            {
                rest = next;
            }
            _ => break,
        }
    }
    parts
}

/// Whether a written name is the failed one: equal at its end, since messages leave out what is plain, and at its start for
/// schemas.
fn fits(parts: &[String], wanted: &[&str], named: Named) -> bool {
    let Some(more) = parts.len().checked_sub(wanted.len()) else { return false };
    let parts = if named == Named::Schema { &parts[..wanted.len()] } else { &parts[more..] };
    parts.iter().map(String::as_str).eq(wanted.iter().copied())
}

/// Whether a name between two tokens is in a place where such a name is looked up.
fn stands(tokens: &[TokenWithSpan], start: usize, end: usize, named: Named) -> bool {
    let before = start.checked_sub(1).and_then(|at| tokens.get(at)).map(|token| &token.token);
    let called = matches!(tokens.get(end).map(|token| &token.token), Some(Token::LParen));
    let keyword = |wanted: &[Keyword]| matches!(before, Some(Token::Word(word)) if wanted.contains(&word.keyword));
    let alias = keyword(&[Keyword::AS]);
    match named {
        Named::Function => called,
        Named::Schema => !alias,
        Named::Column => {
            !alias
                && !called
                && !keyword(&[Keyword::FROM, Keyword::JOIN, Keyword::INTO, Keyword::UPDATE, Keyword::TABLE])
        }
        Named::Relation => {
            !alias
                && (!called
                    || keyword(&[Keyword::INTO, Keyword::TABLE, Keyword::COPY, Keyword::ON, Keyword::REFERENCES]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_names_are_found() {
        let cases = [
            ("SELECT a, x FROM t", "x", Named::Column, Some(11)),
            ("SELECT 1 AS x, t.x FROM t", "t.x", Named::Column, Some(16)),
            ("SELECT x(1), x FROM t", "x", Named::Column, Some(14)),
            ("SELECT s.t.x FROM s.t", "t.x", Named::Column, Some(8)),
            ("INSERT INTO t (a, b) VALUES (1, 2)", "b", Named::Column, Some(19)),
            ("SELECT n.a\nFROM n", "n", Named::Relation, Some(17)),
            ("SELECT 1 FROM n.t", "n", Named::Schema, Some(15)),
            ("SELECT 'gone' FROM gone", "gone", Named::Relation, Some(20)),
            ("SELECT 1 FROM s.gone", "s.gone", Named::Relation, Some(15)),
            ("INSERT INTO gone (a) VALUES (1)", "gone", Named::Relation, Some(13)),
            ("SELECT gone, gone(1)", "gone", Named::Function, Some(14)),
            ("SELECT \"Gone\" FROM t", "Gone", Named::Column, Some(8)),
            ("SELECT gone FROM t", "Gone", Named::Column, None),
            ("SELECT 1", "gone", Named::Relation, None),
        ];
        for (text, name, named, place) in cases {
            assert_eq!(find(text, name, named), place, "{text}");
        }
    }
}

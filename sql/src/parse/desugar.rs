//! Tokens to tokens: syntax that sqlparser does not know becomes syntax that it does.
//!
//! Every table modifier becomes the carrier `name AT(key => value, …)`, which stock sqlparser reads and [`super::TableModifiers`]
//! takes apart. Clauses that have no carrier are cut out and noted in [`Notes`]. Tokens keep their spans, so error positions stay right.
//!
//! | written | becomes |
//! |---|---|
//! | `t FOR SYSTEM_TIME AS OF e` | `t AT(system_at => e)` |
//! | `t FOR SYSTEM_TIME FROM a TO b` | `t AT(system_from => a, system_to => b)` |
//! | `t FOR SYSTEM_TIME BETWEEN a AND b` | `t AT(system_from => a, system_through => b)` |
//! | `t FOR SYSTEM_TIME ALL`, `FOR ALL SYSTEM_TIME` | `t AT(system_all => true)` |
//! | the same with `VALID_TIME` | the same with `valid_…` |
//! | `t TIMESTAMP AS OF e`, `t VERSION AS OF n` | `t AT(system_at => e)`, `t AT(version => n)` |
//! | `t AS OF SYSTEM TIME e`, `AS OF TX e`, `AS OF VALID TIME e` | `t AT(system_at => e)`, … `AT(valid_at => e)` |
//! | `t FOR PORTION OF VALID_TIME FROM a TO b` | `t AT(portion_from => a, portion_to => b)` |
//! | `t VALID PERIOD [a, b)` | `t AT(portion_from => a, portion_to => b)`; `(a` adds `portion_after => true`, `b]` adds `portion_through => true` |
//! | `FROM STREAM OF t` | `FROM t AT(stream => true)` |
//! | `JOIN ANN t` | `JOIN t AT(ann => true)` |
//! | `SET<TEXT>`, `VECTOR<FLOAT, 3>` | `SET('TEXT')`, `VECTOR('FLOAT', '3')` |
//! | `TABLE t` where a query may stand | `SELECT * FROM t` |
//! | `OVERRIDING SYSTEM VALUE`, `EMIT CHANGES`, `READ AT MOST 150ms STALE`, `PERIOD FOR v (a, b)`, `WITH SYSTEM VERSIONING` | cut and noted |
//! | `CREATE TABLE t (a, b) AS …` | the names are cut and noted |
//!
//! # Invariants
//! - DES-1 a statement without these words keeps its tokens. Test: `other_tokens_are_left_alone`.
//! - DES-2 an expression inside a clause ends where sqlparser says it ends, within [`WINDOW`] tokens. Test: `clauses_nest`.
//!
//! # Failure
//! A clause after the table's alias is an error that says where it belongs. A malformed clause is a syntax error at its token.

use sqlparser::ast::Ident;
use sqlparser::dialect::{Dialect, Precedence};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Span, Token, TokenWithSpan, Word};

use super::dialect::LatticeDialect;
use super::statement::{Emit, Overriding};

/// The longest expression inside a clause, in tokens.
const WINDOW: usize = 512;

/// What was cut out of a statement.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// `OVERRIDING … VALUE`.
    pub(crate) overriding: Option<Overriding>,
    /// `EMIT …`.
    pub(crate) emit: Option<Emit>,
    /// `READ AT MOST n STALE`, in milliseconds.
    pub(crate) staleness: Option<u64>,
    /// `PERIOD FOR name (from, to)`.
    pub(crate) periods: Vec<(Ident, Ident, Ident)>,
    /// `WITH SYSTEM VERSIONING`.
    pub(crate) system_versioning: bool,
    /// The names in `CREATE TABLE t (a, b) AS …`: sqlparser wants a type behind each.
    pub(crate) columns: Option<Vec<Ident>>,
}

/// An error at a token.
#[derive(Debug)]
pub(crate) struct Misplaced {
    pub(crate) message: String,
    pub(crate) hint: Option<&'static str>,
    pub(crate) at: Location,
}

impl Misplaced {
    fn new(message: impl Into<String>, at: &TokenWithSpan) -> Misplaced {
        Misplaced { message: message.into(), hint: None, at: at.span.start }
    }
}

type Result<T, E = Misplaced> = std::result::Result<T, E>;

/// Rewrites the tokens of one statement (without white space).
pub(crate) fn desugar(tokens: Vec<TokenWithSpan>, dialect: &LatticeDialect) -> Result<(Vec<TokenWithSpan>, Notes)> {
    if !tokens.iter().any(is_trigger) {
        return Ok((tokens, Notes::default()));
    }
    let mut work = Desugar { tokens, dialect, notes: Notes::default() };
    work.run()?;
    work.renamed_columns();
    Ok((work.tokens, work.notes))
}

/// Words that start something to rewrite; a statement without any is left alone.
fn is_trigger(token: &TokenWithSpan) -> bool {
    let Token::Word(word) = &token.token else { return false };
    if word.quote_style.is_some() {
        return false;
    }
    const WORDS: [&str; 13] = [
        "system_time",
        "valid_time",
        "of",
        "period",
        "stream",
        "ann",
        "set",
        "vector",
        "table",
        "overriding",
        "emit",
        "stale",
        "versioning",
    ];
    WORDS.iter().any(|trigger| word.value.eq_ignore_ascii_case(trigger))
}

struct Desugar<'a> {
    tokens: Vec<TokenWithSpan>,
    dialect: &'a LatticeDialect,
    notes: Notes,
}

/// One modifier: the pairs it adds to the carrier and the tokens it replaces (`from..to`).
struct Modifier {
    pairs: Vec<(&'static str, Vec<TokenWithSpan>)>,
    from: usize,
    to: usize,
}

impl Desugar<'_> {
    /// Goes from the last token to the first, so that what a clause contains is rewritten before the clause itself.
    fn run(&mut self) -> Result<()> {
        let mut at = self.tokens.len();
        while at > 0 {
            at -= 1;
            if !matches!(&self.tokens[at].token, Token::Word(word) if word.quote_style.is_none()) {
                continue;
            }
            if let Some(modifier) = self.modifier(at)? {
                self.check_target(at)?;
                self.splice(modifier);
                continue;
            }
            self.cuts(at)?;
            self.types(at);
            self.table_query(at);
            self.prefixes(at)?;
        }
        Ok(())
    }

    fn token(&self, at: usize) -> Option<&Token> {
        self.tokens.get(at).map(|token| &token.token)
    }

    /// The unquoted word at `at`.
    fn word(&self, at: usize) -> Option<&Word> {
        match self.token(at) {
            Some(Token::Word(word)) if word.quote_style.is_none() => Some(word),
            _ => None,
        }
    }

    /// Whether the unquoted words from `at` are these.
    fn words(&self, at: usize, words: &[&str]) -> bool {
        words
            .iter()
            .enumerate()
            .all(|(i, wanted)| self.word(at + i).is_some_and(|word| word.value.eq_ignore_ascii_case(wanted)))
    }

    fn is(&self, at: usize, token: &Token) -> bool {
        self.token(at) == Some(token)
    }

    /// A table modifier that starts at `at`.
    fn modifier(&self, at: usize) -> Result<Option<Modifier>> {
        let Some(word) = self.word(at) else { return Ok(None) };
        match word.keyword {
            Keyword::FOR if at > 0 && self.words(at - 1, &["period"]) => Ok(None),
            Keyword::FOR => self.for_clause(at),
            // After `::` or in a cast it is a type.
            Keyword::TIMESTAMP
                if self.words(at + 1, &["as", "of"]) && at > 0 && !self.is(at - 1, &Token::DoubleColon) =>
            {
                let (value, to) = self.expression(at + 3, 0)?;
                Ok(Some(Modifier { pairs: vec![("system_at", value)], from: at, to }))
            }
            Keyword::VERSION if self.words(at + 1, &["as", "of"]) => {
                let (value, to) = self.expression(at + 3, 0)?;
                Ok(Some(Modifier { pairs: vec![("version", value)], from: at, to }))
            }
            Keyword::AS if self.words(at + 1, &["of"]) => {
                // `TIMESTAMP AS OF` and `FOR … AS OF` are read from their first word; here only the short forms start.
                if at > 0
                    && ["system_time", "valid_time", "timestamp", "version"]
                        .iter()
                        .any(|word| self.words(at - 1, &[word]))
                {
                    return Ok(None);
                }
                let (key, start) = if self.words(at + 2, &["system", "time"]) {
                    ("system_at", at + 4)
                } else if self.words(at + 2, &["valid", "time"]) {
                    ("valid_at", at + 4)
                } else if self.words(at + 2, &["tx"]) {
                    ("system_at", at + 3)
                } else {
                    return Ok(None);
                };
                let (value, to) = self.expression(start, 0)?;
                Ok(Some(Modifier { pairs: vec![(key, value)], from: at, to }))
            }
            _ if word.value.eq_ignore_ascii_case("valid")
                && self.words(at + 1, &["period"])
                && matches!(self.token(at + 2), Some(Token::LBracket | Token::LParen)) =>
            {
                self.valid_period(at).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// `FOR [ALL] { SYSTEM_TIME | VALID_TIME } …`, `FOR PORTION OF VALID_TIME FROM a TO b`.
    fn for_clause(&self, at: usize) -> Result<Option<Modifier>> {
        if self.words(at + 1, &["portion", "of"]) {
            return self.portion(at).map(Some);
        }
        let all_first = self.words(at + 1, &["all"]);
        let dimension = at + 1 + usize::from(all_first);
        let system = if self.words(dimension, &["system_time"]) {
            true
        } else if self.words(dimension, &["valid_time"]) {
            false
        } else {
            return Ok(None);
        };
        let key = |system_key, valid_key| if system { system_key } else { valid_key };
        let next = dimension + 1;
        if all_first || self.words(next, &["all"]) {
            let to = if all_first { next } else { next + 1 };
            let value = vec![self.like(at, Token::make_keyword("TRUE"))];
            return Ok(Some(Modifier { pairs: vec![(key("system_all", "valid_all"), value)], from: at, to }));
        }
        if self.words(next, &["as", "of"]) {
            let (value, to) = self.expression(next + 2, 0)?;
            return Ok(Some(Modifier { pairs: vec![(key("system_at", "valid_at"), value)], from: at, to }));
        }
        if self.words(next, &["from"]) {
            let (from, middle) = self.expression(next + 1, 0)?;
            if !self.words(middle, &["to"]) {
                return Err(self.expected("TO and the end of the period", middle));
            }
            let (to, end) = self.expression(middle + 1, 0)?;
            let pairs = vec![(key("system_from", "valid_from"), from), (key("system_to", "valid_to"), to)];
            return Ok(Some(Modifier { pairs, from: at, to: end }));
        }
        if self.words(next, &["between"]) {
            let between = self.dialect.prec_value(Precedence::Between);
            let (from, middle) = self.expression(next + 1, between)?;
            if !self.words(middle, &["and"]) {
                return Err(self.expected("AND and the end of the period", middle));
            }
            let (to, end) = self.expression(middle + 1, between)?;
            let pairs = vec![(key("system_from", "valid_from"), from), (key("system_through", "valid_through"), to)];
            return Ok(Some(Modifier { pairs, from: at, to: end }));
        }
        Err(self.expected("AS OF, FROM, BETWEEN or ALL", next))
    }

    /// `FOR PORTION OF VALID_TIME FROM a TO b`.
    fn portion(&self, at: usize) -> Result<Modifier> {
        if !self.words(at + 3, &["valid_time"]) {
            return Err(self.expected("VALID_TIME", at + 3));
        }
        if !self.words(at + 4, &["from"]) {
            return Err(self.expected("FROM", at + 4));
        }
        let (from, middle) = self.expression(at + 5, 0)?;
        if !self.words(middle, &["to"]) {
            return Err(self.expected("TO and the end of the period", middle));
        }
        let (to, end) = self.expression(middle + 1, 0)?;
        Ok(Modifier { pairs: vec![("portion_from", from), ("portion_to", to)], from: at, to: end })
    }

    /// `VALID PERIOD [a, b)`, with either bracket on either side.
    fn valid_period(&self, at: usize) -> Result<Modifier> {
        let open = at + 2;
        let (from, comma) = self.expression(open + 1, 0)?;
        if !self.is(comma, &Token::Comma) {
            return Err(self.expected("a comma and the end of the period", comma));
        }
        let (to, close) = self.expression(comma + 1, 0)?;
        let yes = || vec![self.like(at, Token::make_keyword("TRUE"))];
        let mut pairs = vec![("portion_from", from), ("portion_to", to)];
        if self.is(open, &Token::LParen) {
            pairs.push(("portion_after", yes()));
        }
        match self.token(close) {
            Some(Token::RParen) => {}
            Some(Token::RBracket) => pairs.push(("portion_through", yes())),
            _ => return Err(self.expected(") or ] at the end of the period", close)),
        }
        Ok(Modifier { pairs, from: at, to: close + 1 })
    }

    /// The expression that starts at `at`: its tokens, and the index after them.
    fn expression(&self, at: usize, precedence: u8) -> Result<(Vec<TokenWithSpan>, usize)> {
        let end = self.tokens.len().min(at.saturating_add(WINDOW));
        let window = self.tokens.get(at..end).unwrap_or_default().to_vec();
        if window.is_empty() {
            return Err(self.expected("an expression", at));
        }
        let mut parser = Parser::new(self.dialect).with_tokens_with_locations(window);
        match parser.parse_subexpr(precedence) {
            Ok(_) => {
                let length = parser.index();
                Ok((self.tokens[at..at + length].to_vec(), at + length))
            }
            Err(ParserError::RecursionLimitExceeded) => {
                Err(Misplaced::new("the expression nests too deeply", &self.tokens[at]))
            }
            Err(_) => Err(self.expected("an expression", at)),
        }
    }

    /// A clause must follow the table's name directly: `orders o FOR SYSTEM_TIME …` would put it after the alias.
    fn check_target(&self, at: usize) -> Result<()> {
        if self.follows_name(at) || self.follows_clause(at) {
            return Ok(());
        }
        let clause = &self.tokens[at];
        let named = matches!(at.checked_sub(1).and_then(|before| self.token(before)), Some(Token::Word(_)));
        Err(Misplaced {
            message: if named {
                "syntax error: the time clause stands after the table's alias".to_owned()
            } else {
                "syntax error: a time clause must follow a table's name".to_owned()
            },
            hint: named.then_some("write it before the alias: orders FOR SYSTEM_TIME AS OF … o"),
            at: clause.span.start,
        })
    }

    /// Whether a table's name, in a place where one may stand, ends just before `at`.
    fn follows_name(&self, at: usize) -> bool {
        let Some(mut start) = at.checked_sub(1) else { return false };
        if !matches!(self.token(start), Some(Token::Word(_))) {
            return false;
        }
        while start >= 2 && self.is(start - 1, &Token::Period) && matches!(self.token(start - 2), Some(Token::Word(_)))
        {
            start -= 2;
        }
        match start.checked_sub(1).and_then(|before| self.token(before)) {
            Some(Token::Word(word)) => {
                word.value.eq_ignore_ascii_case("ann")
                    || matches!(
                        word.keyword,
                        Keyword::FROM
                            | Keyword::JOIN
                            | Keyword::UPDATE
                            | Keyword::INTO
                            | Keyword::USING
                            | Keyword::ONLY
                            | Keyword::LATERAL
                            | Keyword::TABLE
                            | Keyword::OF
                    )
            }
            Some(Token::Comma | Token::LParen) => true,
            _ => false,
        }
    }

    /// Whether `at` follows another time clause of the same table.
    fn follows_clause(&self, at: usize) -> bool {
        for before in (at.saturating_sub(WINDOW)..at).rev() {
            let Some(word) = self.word(before) else { continue };
            if self.words(before, &["system_time"])
                || self.words(before, &["valid_time"])
                || self.words(before, &["as", "of"])
            {
                return true;
            }
            if matches!(
                word.keyword,
                Keyword::JOIN | Keyword::WHERE | Keyword::SELECT | Keyword::ON | Keyword::UPDATE | Keyword::DELETE
            ) {
                return false;
            }
        }
        false
    }

    /// Replaces a modifier's tokens by the carrier, or joins them to the carrier that follows.
    fn splice(&mut self, modifier: Modifier) {
        let Modifier { pairs, from, to } = modifier;
        // A modifier may be put behind the last token.
        let span = self.tokens.get(from).or(self.tokens.last()).map_or_else(Span::empty, |token| token.span);
        let like = |token: Token| TokenWithSpan::new(token, span);
        let joins = self.words(to, &["at"]) && self.is(to + 1, &Token::LParen);
        let mut carrier = vec![like(Token::make_keyword("AT")), like(Token::LParen)];
        for (i, (key, value)) in pairs.into_iter().enumerate() {
            if i > 0 {
                carrier.push(like(Token::Comma));
            }
            carrier.push(like(Token::make_word(key, None)));
            carrier.push(like(Token::RArrow));
            carrier.extend(value);
        }
        let to = if joins {
            carrier.push(like(Token::Comma));
            to + 2
        } else {
            // The end of the clause, so that the text of a statement that ends here is cut there.
            let end = to.checked_sub(1).and_then(|last| self.tokens.get(last)).map_or(span, |token| token.span);
            carrier.push(TokenWithSpan::new(Token::RParen, end));
            to
        };
        self.tokens.splice(from..to, carrier);
    }

    /// Clauses that are cut out and noted.
    fn cuts(&mut self, at: usize) -> Result<()> {
        // MERGE reads its own OVERRIDING, one per clause.
        if self.words(at, &["overriding"]) && self.words(at + 2, &["value"]) && !self.words(0, &["merge"]) {
            let overriding = if self.words(at + 1, &["system"]) {
                Overriding::System
            } else if self.words(at + 1, &["user"]) {
                Overriding::User
            } else {
                return Ok(());
            };
            self.notes.overriding = Some(overriding);
            self.tokens.drain(at..at + 3);
        } else if self.words(at, &["emit", "changes"]) {
            self.notes.emit = Some(Emit::Changes);
            self.tokens.drain(at..at + 2);
        } else if self.words(at, &["emit", "on", "window", "close"]) {
            self.notes.emit = Some(Emit::OnWindowClose);
            self.tokens.drain(at..at + 4);
        } else if self.words(at, &["read", "at", "most"]) {
            self.staleness(at)?;
        } else if self.words(at, &["with", "system", "versioning"]) {
            self.notes.system_versioning = true;
            self.tokens.drain(at..at + 3);
        } else if self.words(at, &["period", "for"]) && self.is(at + 3, &Token::LParen) {
            self.period(at)?;
        }
        Ok(())
    }

    /// `READ AT MOST 150ms STALE`.
    fn staleness(&mut self, at: usize) -> Result<()> {
        let Some(Token::Number(number, _)) = self.token(at + 3) else {
            return Err(self.expected("a duration such as 150ms", at + 3));
        };
        let number: f64 = number.parse().map_err(|_| self.expected("a duration such as 150ms", at + 3))?;
        let unit = self.word(at + 4).map(|word| word.value.to_ascii_lowercase()).unwrap_or_default();
        let factor = match unit.as_str() {
            "ms" | "millisecond" | "milliseconds" => 1.0,
            "s" | "sec" | "second" | "seconds" => 1e3,
            "m" | "min" | "minute" | "minutes" => 6e4,
            _ => return Err(self.expected("ms, s or min", at + 4)),
        };
        if !self.words(at + 5, &["stale"]) {
            return Err(self.expected("STALE", at + 5));
        }
        // A float cast saturates, which is what an absurdly long bound should do.
        self.notes.staleness = Some((number * factor) as u64);
        self.tokens.drain(at..at + 6);
        Ok(())
    }

    /// `PERIOD FOR name (from, to)` among the columns of a table, with the comma that separates it.
    fn period(&mut self, at: usize) -> Result<()> {
        let ident = |token: Option<&Token>| match token {
            Some(Token::Word(word)) => Some(word.clone().into_ident(Span::empty())),
            _ => None,
        };
        let shape = self.is(at + 5, &Token::Comma) && self.is(at + 7, &Token::RParen);
        let names = (ident(self.token(at + 2)), ident(self.token(at + 4)), ident(self.token(at + 6)));
        let (true, (Some(name), Some(from), Some(to))) = (shape, names) else {
            return Err(self.expected("PERIOD FOR name (from, to)", at));
        };
        self.notes.periods.push((name, from, to));
        let range = if at > 0 && self.is(at - 1, &Token::Comma) {
            at - 1..at + 8
        } else if self.is(at + 8, &Token::Comma) {
            at..at + 9
        } else {
            at..at + 8
        };
        self.tokens.drain(range);
        Ok(())
    }

    /// `SET<TEXT>` and `VECTOR<FLOAT, 768>`, in exactly these shapes: `vector < 3` stays an expression.
    fn types(&mut self, at: usize) {
        let set = self.words(at, &["set"]);
        if !(set || self.words(at, &["vector"])) || !self.is(at + 1, &Token::Lt) {
            return;
        }
        let Some(inner) = self.word(at + 2).map(|word| word.value.clone()) else { return };
        let (arguments, close) = if set {
            (vec![inner], at + 3)
        } else {
            let Some(Token::Number(size, _)) = self.token(at + 4).cloned() else { return };
            if !self.is(at + 3, &Token::Comma) {
                return;
            }
            (vec![inner, size], at + 5)
        };
        if !self.is(close, &Token::Gt) {
            return;
        }
        let like = |token: Token| TokenWithSpan::new(token, self.tokens[at].span);
        // Without its keyword the name is a custom type with modifiers.
        let name = if set { "SET" } else { "VECTOR" };
        let mut tokens = vec![
            like(Token::Word(Word { value: name.to_owned(), quote_style: None, keyword: Keyword::NoKeyword })),
            like(Token::LParen),
        ];
        for (i, argument) in arguments.into_iter().enumerate() {
            if i > 0 {
                tokens.push(like(Token::Comma));
            }
            tokens.push(like(Token::SingleQuotedString(argument)));
        }
        tokens.push(like(Token::RParen));
        self.tokens.splice(at..=close, tokens);
    }

    /// `TABLE t` where a query may stand: at the start, after a set operator, and in parentheses after a word that takes a query.
    fn table_query(&mut self, at: usize) {
        if !self.words(at, &["table"]) || !matches!(self.token(at + 1), Some(Token::Word(_))) {
            return;
        }
        let before = at.checked_sub(1);
        let query = match before.and_then(|before| self.token(before)) {
            None => true,
            // CREATE TABLE t AS TABLE u.
            Some(Token::Word(word)) if word.keyword == Keyword::AS => {
                self.words(0, &["create"]) || self.words(0, &["prepare"])
            }
            Some(Token::Word(word)) => {
                matches!(
                    word.keyword,
                    Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT | Keyword::ALL | Keyword::DISTINCT
                ) && self.words_before_are_set_operator(at)
            }
            Some(Token::LParen) => {
                match before.and_then(|before| before.checked_sub(1)).and_then(|name| self.token(name)) {
                    None | Some(Token::LParen | Token::Eq | Token::Comma) => true,
                    Some(Token::Word(word)) => matches!(
                        word.keyword,
                        Keyword::FROM
                            | Keyword::JOIN
                            | Keyword::AS
                            | Keyword::IN
                            | Keyword::EXISTS
                            | Keyword::ANY
                            | Keyword::SOME
                            | Keyword::ALL
                            | Keyword::ARRAY
                            | Keyword::LATERAL
                            | Keyword::COPY
                            | Keyword::ON
                            | Keyword::MATERIALIZED
                    ),
                    _ => false,
                }
            }
            _ => false,
        };
        if query {
            let like = |token: Token| TokenWithSpan::new(token, self.tokens[at].span);
            let tokens = vec![like(Token::make_keyword("SELECT")), like(Token::Mul), like(Token::make_keyword("FROM"))];
            self.tokens.splice(at..=at, tokens);
        }
    }

    /// Whether `UNION`, `EXCEPT` or `INTERSECT`, perhaps with `ALL` or `DISTINCT`, stands before `at`.
    fn words_before_are_set_operator(&self, at: usize) -> bool {
        let operator = |at: Option<usize>| {
            at.and_then(|at| self.word(at))
                .is_some_and(|word| matches!(word.keyword, Keyword::UNION | Keyword::EXCEPT | Keyword::INTERSECT))
        };
        operator(at.checked_sub(1)) || operator(at.checked_sub(2))
    }

    /// `STREAM OF t` and `JOIN ANN t`: the modifier stands before the name.
    fn prefixes(&mut self, at: usize) -> Result<()> {
        let (key, name) = if self.words(at, &["stream", "of"]) && matches!(self.token(at + 2), Some(Token::Word(_))) {
            ("stream", at + 2)
        } else if self.words(at, &["ann"])
            && at > 0
            && self.words(at - 1, &["join"])
            && matches!(self.token(at + 1), Some(Token::Word(word))
                if word.quote_style.is_some() || !matches!(word.keyword, Keyword::ON | Keyword::AS | Keyword::USING))
        {
            ("ann", at + 1)
        } else {
            return Ok(());
        };
        let mut end = name + 1;
        while self.is(end, &Token::Period) && matches!(self.token(end + 1), Some(Token::Word(_))) {
            end += 2;
        }
        let value = vec![self.like(at, Token::make_keyword("TRUE"))];
        self.splice(Modifier { pairs: vec![(key, value)], from: end, to: end });
        self.tokens.drain(at..name);
        Ok(())
    }

    /// Cuts `(a, b)` out of `CREATE TABLE t (a, b) AS …`.
    fn renamed_columns(&mut self) {
        let mut at = 1;
        while self
            .word(at)
            .is_some_and(|word| matches!(word.keyword, Keyword::TEMP | Keyword::TEMPORARY | Keyword::LOCAL))
        {
            at += 1;
        }
        if !self.words(0, &["create"]) || !self.words(at, &["table"]) {
            return;
        }
        at += if self.words(at + 1, &["if", "not", "exists"]) { 5 } else { 2 };
        while self.is(at, &Token::Period) {
            at += 2;
        }
        let open = at;
        if !self.is(open, &Token::LParen) {
            return;
        }
        let mut names = Vec::new();
        loop {
            let Some(TokenWithSpan { token: Token::Word(word), span }) = self.tokens.get(at + 1) else { return };
            names.push(word.clone().into_ident(*span));
            at += 2;
            match self.token(at) {
                Some(Token::Comma) => {}
                Some(Token::RParen) => break,
                _ => return,
            }
        }
        if self.word(at + 1).is_some_and(|word| matches!(word.keyword, Keyword::AS | Keyword::WITH | Keyword::ON)) {
            self.tokens.drain(open..=at);
            self.notes.columns = Some(names);
        }
    }

    fn like(&self, at: usize, token: Token) -> TokenWithSpan {
        TokenWithSpan::new(token, self.tokens[at].span)
    }

    fn expected(&self, what: &str, at: usize) -> Misplaced {
        match self.tokens.get(at) {
            Some(token) => Misplaced::new(format!("syntax error: expected {what}, found {}", token.token), token),
            None => {
                let at = self.tokens.last().map_or(Location { line: 1, column: 1 }, |token| token.span.end);
                Misplaced { message: format!("syntax error: expected {what}, found the end"), hint: None, at }
            }
        }
    }
}

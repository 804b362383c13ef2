//! Names of tables as people type them on a command line: read by the rules of SQL.

/// The parts of `name`, `schema.name` or `catalog.schema.name`. Unquoted parts fold to lower case, quoted ones are kept
/// as they are, with `""` for a quote.
pub(crate) fn path(text: &str) -> Result<Vec<String>, String> {
    let wrong = |what: &str| format!("`{text}` is not a table name: {what}");
    let mut parts = Vec::new();
    let mut rest = text.trim();
    loop {
        let name;
        if let Some(quoted) = rest.strip_prefix('"') {
            let (inner, after) = quoted_part(quoted).ok_or_else(|| wrong("its quote is not closed"))?;
            (name, rest) = (inner, after);
        } else {
            let end = rest.find(['.', '"']).unwrap_or(rest.len());
            (name, rest) = (rest[..end].trim().to_lowercase(), &rest[end..]);
        }
        if name.is_empty() {
            return Err(wrong("a part of it is empty"));
        }
        parts.push(name);
        let after = rest.trim_start();
        if after.is_empty() {
            break;
        }
        rest = after.strip_prefix('.').ok_or_else(|| wrong("quotes enclose a whole part, as in \"My Table\""))?;
        rest = rest.trim_start();
    }
    if parts.len() > 3 {
        return Err(wrong("it has more parts than catalog.schema.name"));
    }
    Ok(parts)
}

/// The text up to the closing quote, and what follows that.
fn quoted_part(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let end = rest.find('"')?;
        name.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                name.push('"');
                rest = after;
            }
            None => return Some((name, rest)),
        }
    }
}

/// A name as SQL reads it back: quoted if it must be.
pub(crate) fn quoted(name: &str) -> String {
    let plain = name.chars().next().is_some_and(|c| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.to_owned() } else { always_quoted(name) }
}

/// A name in quotes: no word of the language can be meant.
pub(crate) fn always_quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text in SQL.
pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_sql_reads_them() {
        let read = |text: &str| path(text).unwrap();
        assert_eq!(read("Orders"), ["orders"]);
        assert_eq!(read("Shop.Orders"), ["shop", "orders"]);
        assert_eq!(read("\"Odd Name\""), ["Odd Name"]);
        assert_eq!(read("Shop.\"a.b \"\"c\"\"\""), ["shop", "a.b \"c\""]);
        assert_eq!(read(" \"S\" . T "), ["S", "t"]);
        for wrong in ["", "a.", ".a", "\"a", "\"a\"b", "a\"b\"", "a.b.c.d", "\"\""] {
            assert!(path(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_quoted_where_they_must_be() {
        assert_eq!(quoted("orders_2"), "orders_2");
        assert_eq!(quoted("Orders"), "\"Orders\"");
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
    }
}

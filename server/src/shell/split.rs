//! Cuts typed text into statements, so that the shell knows when one is complete.
//!
//! Only the parts of the language that can hide a semicolon are known here: quotes, dollar quotes and comments. The
//! server parses for real.

/// The complete statements of `text` without their semicolons, and what follows the last one.
pub fn split(text: &str) -> (Vec<String>, String) {
    let mut statements = Vec::new();
    let mut start = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if let Some(length) = opaque(rest) {
            at += length;
        } else if rest.starts_with(';') {
            let statement = text[start..at].trim();
            if !is_blank(statement) {
                statements.push(statement.to_owned());
            }
            at += 1;
            start = at;
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    (statements, text[start..].to_owned())
}

/// Whether nothing but white space and comments is left.
pub fn is_blank(text: &str) -> bool {
    let mut rest = text.trim_start();
    while rest.starts_with("--") || rest.starts_with("/*") {
        let length = opaque(rest).unwrap_or(rest.len());
        rest = rest[length..].trim_start();
    }
    rest.is_empty()
}

/// Whether `text` ends inside of quotes or a comment.
pub(super) fn is_inside(text: &str) -> bool {
    waits_for(text).is_some()
}

/// What the prompt says: that nothing is pending, that a statement is, or the quote or comment that is open.
pub(super) fn prompt(pending: &str) -> String {
    let sign = match waits_for(pending) {
        Some(open) => open,
        None if is_blank(pending) => '=',
        None => '-',
    };
    format!("lattice{sign}> ")
}

/// The quote that is open at the end of the text, or `*` for a comment.
fn waits_for(text: &str) -> Option<char> {
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let Some(length) = opaque(rest) else {
            at += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        };
        // What is open takes in whatever follows it.
        if length == rest.len() && !rest.starts_with("--") && opaque(&format!("{rest} ")) == Some(length + 1) {
            return Some(match &rest[..1] {
                "/" => '*',
                "E" | "e" => '\'',
                quote => quote.chars().next().unwrap_or('\''),
            });
        }
        at += length;
    }
    None
}

/// Length of the quoted text or comment at the start of `rest`; an unfinished one runs to the end.
fn opaque(rest: &str) -> Option<usize> {
    if rest.starts_with("--") {
        return Some(rest.find('\n').map_or(rest.len(), |end| end + 1));
    }
    if rest.starts_with("/*") {
        return Some(comment(rest));
    }
    if rest.starts_with("E'") || rest.starts_with("e'") {
        return Some(1 + escaped(&rest[1..]));
    }
    for quote in ['\'', '"'] {
        if rest.starts_with(quote) {
            // A doubled quote reads as the end of one text and the start of the next, which comes to the same here.
            return Some(rest[1..].find(quote).map_or(rest.len(), |end| end + 2));
        }
    }
    if rest.starts_with('$') {
        let tag = rest[1..].find('$').map(|end| &rest[..end + 2])?;
        let name = &tag[1..tag.len() - 1];
        if name.chars().all(|c| c.is_alphanumeric() || c == '_') && !name.starts_with(|c: char| c.is_ascii_digit()) {
            return Some(rest[tag.len()..].find(tag).map_or(rest.len(), |end| end + 2 * tag.len()));
        }
    }
    None
}

/// Comments nest.
fn comment(rest: &str) -> usize {
    let bytes = rest.as_bytes();
    let (mut at, mut depth) = (2, 1);
    while at < bytes.len() && depth > 0 {
        match &bytes[at..bytes.len().min(at + 2)] {
            b"/*" => {
                depth += 1;
                at += 2;
            }
            b"*/" => {
                depth -= 1;
                at += 2;
            }
            _ => at += 1,
        }
    }
    at
}

/// `'…'` in which a backslash hides the next character.
fn escaped(rest: &str) -> usize {
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => {
                characters.next();
            }
            '\'' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semicolons_inside_text_and_comments_do_not_end_a_statement() {
        let text = "SELECT ';', \"a;b\" -- x;\n, $$;$$, $t$ ; $t$ /* ; /* ; */ ; */, E'\\';' ; SELECT 'it''s;'; rest";
        let (statements, rest) = split(text);
        assert_eq!(statements.len(), 2, "{statements:?}");
        assert!(statements[0].ends_with("E'\\';'"), "{statements:?}");
        assert_eq!(statements[1], "SELECT 'it''s;'");
        assert_eq!(rest.trim(), "rest");
    }

    #[test]
    fn the_prompt_tells_what_is_open() {
        for (pending, sign) in [
            ("", '='),
            (" -- only a comment\n", '='),
            ("SELECT 1\n", '-'),
            ("SELECT 'a\n", '\''),
            ("SELECT 'a'\n", '-'),
            ("SELECT e'\\'\n", '\''),
            ("SELECT \"a", '"'),
            ("SELECT /* a", '*'),
            ("SELECT $x$ a", '$'),
            ("SELECT $x$ a $x$", '-'),
        ] {
            assert_eq!(prompt(pending), format!("lattice{sign}> "), "{pending:?}");
        }
    }

    #[test]
    fn unfinished_text_waits_for_its_end() {
        assert_eq!(split("SELECT 'a;\nb").0.len(), 0);
        assert_eq!(split("SELECT $1, $2; x").0, ["SELECT $1, $2"]);
        assert_eq!(split(";; -- only a comment\n;").0.len(), 0);
        assert!(is_blank("  -- hello\n /* a */ "));
        assert!(!is_blank("/* a */ x"));
        assert_eq!(split("SELECT 'ä;ö'; SELECT 'é").0, ["SELECT 'ä;ö'"]);
    }
}

//! Places in the text of a script.
//!
//! sqlparser counts lines and columns (in characters); messages and PostgreSQL's protocol count characters from the start, slices count
//! bytes. Statements come in order, so one cursor that moves forward translates a whole script in one pass.

use sqlparser::tokenizer::Location;

/// One place, in both units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// From 0, in bytes.
    pub(crate) byte: usize,
    /// From 1, in characters.
    pub(crate) character: usize,
}

/// Translates line and column into offsets.
#[derive(Clone, Debug)]
pub(crate) struct Locator<'a> {
    text: &'a str,
    line: u64,
    column: u64,
    place: Place,
}

impl<'a> Locator<'a> {
    /// Over this text.
    pub(crate) fn new(text: &'a str) -> Locator<'a> {
        Locator { text, line: 1, column: 1, place: Place { byte: 0, character: 1 } }
    }

    /// The place of this location; past the end it is the end. Cheap when locations come in order.
    pub(crate) fn place(&mut self, at: Location) -> Place {
        if (at.line, at.column) < (self.line, self.column) {
            *self = Locator::new(self.text);
        }
        while (self.line, self.column) < (at.line, at.column) {
            let Some(next) = self.text[self.place.byte..].chars().next() else { break };
            if next == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
            self.place.byte += next.len_utf8();
            self.place.character += 1;
        }
        self.place
    }
}

/// The location at the end of a parser's message (`… at Line: 1, Column: 8`), and the message without it.
pub(crate) fn split_location(message: &str) -> (&str, Option<Location>) {
    let Some((text, rest)) = message.rsplit_once(" at Line: ") else { return (message, None) };
    let Some((line, column)) = rest.split_once(", Column: ") else { return (message, None) };
    match (line.parse(), column.parse()) {
        (Ok(line), Ok(column)) => (text, Some(Location { line, column })),
        _ => (message, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_bytes_and_characters() {
        let mut locator = Locator::new("é\nab");
        assert_eq!(locator.place(Location { line: 1, column: 2 }), Place { byte: 2, character: 2 });
        assert_eq!(locator.place(Location { line: 2, column: 2 }), Place { byte: 4, character: 4 });
        assert_eq!(locator.place(Location { line: 1, column: 1 }), Place { byte: 0, character: 1 });
        assert_eq!(locator.place(Location { line: 9, column: 9 }), Place { byte: 5, character: 5 });
    }

    #[test]
    fn the_location_is_cut_from_the_message() {
        assert_eq!(
            split_location("Expected: x, found: y at Line: 3, Column: 14"),
            ("Expected: x, found: y", Some(Location { line: 3, column: 14 }))
        );
        assert_eq!(split_location("no place"), ("no place", None));
    }
}

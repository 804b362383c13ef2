//! Asks the person at the terminal for a password.

use std::borrow::Cow;
use std::io::IsTerminal;

use rustyline::completion::Completer;
use rustyline::config::Behavior;
use rustyline::highlight::{CmdKind, Highlighter};
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Config, Editor, Helper};

/// Reads a password without showing it. `None` where nobody can be asked, or nothing was answered.
pub(crate) fn ask(user: &str, address: &str) -> Option<String> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return None;
    }
    // The terminal itself, since standard output may go to a file.
    let config = Config::builder().behavior(Behavior::PreferTerm).auto_add_history(false).build();
    let mut editor = Editor::<Hidden, rustyline::history::MemHistory>::with_history(config, Default::default()).ok()?;
    editor.set_helper(Some(Hidden {}));
    editor.readline(&format!("Password of {user} at {address}: ")).ok()
}

/// Shows stars for what is typed.
struct Hidden {}

impl Highlighter for Hidden {
    fn highlight<'l>(&self, line: &'l str, _pos: usize) -> Cow<'l, str> {
        Cow::Owned("*".repeat(line.chars().count()))
    }

    fn highlight_char(&self, _line: &str, _pos: usize, _kind: CmdKind) -> bool {
        true
    }
}

impl Completer for Hidden {
    type Candidate = String;
}

impl Hinter for Hidden {
    type Hint = String;
}

impl Validator for Hidden {}

impl Helper for Hidden {}

//! Session settings: a closed list with defaults and checks. A name that is not in the list is an error, never ignored.

use std::collections::BTreeMap;
use std::time::Duration;

use base::SqlState;

use crate::door::OptionValue;
use crate::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Flag,
    Number,
    Time,
    /// One of the words.
    Word(&'static [&'static str]),
    /// UTC by any of its names.
    Zone,
    /// Cannot be set.
    Fixed,
}

struct Setting {
    name: &'static str,
    default: &'static str,
    kind: Kind,
    description: &'static str,
}

const ISOLATION: &[&str] = &["repeatable read", "snapshot", "read committed", "read uncommitted"];

const SETTINGS: &[Setting] = &[
    Setting { name: "application_name", default: "", kind: Kind::Text, description: "the client's name" },
    Setting {
        name: "client_encoding",
        default: "UTF8",
        kind: Kind::Word(&["utf8", "utf-8", "unicode"]),
        description: "text is UTF-8",
    },
    Setting {
        name: "client_min_messages",
        default: "notice",
        kind: Kind::Word(&["debug5", "debug4", "debug3", "debug2", "debug1", "log", "notice", "warning", "error"]),
        description: "the least level of messages sent",
    },
    Setting {
        name: "datestyle",
        default: "ISO, MDY",
        kind: Kind::Word(&["iso", "iso, mdy", "iso,mdy", "iso, ymd", "iso, dmy"]),
        description: "dates are ISO 8601",
    },
    Setting {
        name: "default_transaction_isolation",
        default: "repeatable read",
        kind: Kind::Word(ISOLATION),
        description: "of new transactions",
    },
    Setting {
        name: "default_transaction_read_only",
        default: "off",
        kind: Kind::Flag,
        description: "of new transactions",
    },
    Setting { name: "extra_float_digits", default: "1", kind: Kind::Number, description: "floats are always exact" },
    Setting {
        name: "idle_in_transaction_session_timeout",
        default: "0",
        kind: Kind::Time,
        description: "open transactions idle longer are aborted",
    },
    Setting { name: "integer_datetimes", default: "on", kind: Kind::Fixed, description: "times are microseconds" },
    Setting {
        name: "intervalstyle",
        default: "postgres",
        kind: Kind::Word(&["postgres"]),
        description: "how intervals print",
    },
    Setting {
        name: "lattice.durability",
        default: "sync",
        kind: Kind::Word(&["sync"]),
        description: "an acknowledged commit is on disk",
    },
    Setting {
        name: "lattice.max_staleness",
        default: "0",
        kind: Kind::Word(&["0"]),
        description: "reads see the newest state",
    },
    Setting {
        name: "lattice.pipeline",
        default: "",
        kind: Kind::Text,
        description: "the pipeline id that commits record",
    },
    Setting { name: "lattice.source", default: "", kind: Kind::Text, description: "the source that commits record" },
    Setting {
        name: "lock_timeout",
        default: "0",
        kind: Kind::Time,
        description: "longest wait for a row lock; 0 is the server's limit",
    },
    Setting { name: "max_identifier_length", default: "63", kind: Kind::Fixed, description: "longest name" },
    Setting {
        name: "search_path",
        default: "public",
        kind: Kind::Text,
        description: "where names without a schema are looked up",
    },
    Setting { name: "server_encoding", default: "UTF8", kind: Kind::Fixed, description: "text is UTF-8" },
    Setting { name: "server_version", default: "", kind: Kind::Fixed, description: "the version of the server" },
    Setting {
        name: "standard_conforming_strings",
        default: "on",
        kind: Kind::Word(&["on"]),
        description: "backslashes in strings are plain",
    },
    Setting { name: "statement_timeout", default: "0", kind: Kind::Time, description: "longest run of a statement" },
    Setting { name: "timezone", default: "UTC", kind: Kind::Zone, description: "the session's time zone" },
    Setting {
        name: "transaction_isolation",
        default: "repeatable read",
        kind: Kind::Fixed,
        description: "of the current transaction",
    },
    Setting {
        name: "transaction_read_only",
        default: "off",
        kind: Kind::Fixed,
        description: "of the current transaction",
    },
];

/// One session's settings.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    set: BTreeMap<&'static str, String>,
    defaults: BTreeMap<&'static str, String>,
}

impl Settings {
    pub(crate) fn new(version: &str, statement_timeout: Duration) -> Self {
        let mut defaults: BTreeMap<_, _> =
            SETTINGS.iter().map(|setting| (setting.name, setting.default.to_owned())).collect();
        defaults.insert("server_version", version.to_owned());
        defaults.insert("statement_timeout", show_time(statement_timeout));
        Self { set: BTreeMap::new(), defaults }
    }

    /// Makes a value the session's default, so that RESET returns to it.
    pub(crate) fn set_default(&mut self, name: &str, value: &str) -> Result<()> {
        let setting = find(name)?;
        let value = check(setting, value)?;
        self.defaults.insert(setting.name, value);
        Ok(())
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let setting = find(name)?;
        if setting.kind == Kind::Fixed {
            return Err(Error::state(
                SqlState::OBJECT_NOT_IN_STATE,
                format!("parameter \"{}\" cannot be changed", setting.name),
            ));
        }
        let value = check(setting, value)?;
        self.set.insert(setting.name, value);
        Ok(())
    }

    /// Back to the default; `None` for all.
    pub(crate) fn reset(&mut self, name: Option<&str>) -> Result<()> {
        match name {
            Some(name) => {
                let setting = find(name)?;
                self.set.remove(setting.name);
            }
            None => self.set.clear(),
        }
        Ok(())
    }

    pub(crate) fn get(&self, name: &str) -> Result<&str> {
        let setting = find(name)?;
        Ok(self.set.get(setting.name).or_else(|| self.defaults.get(setting.name)).map_or("", String::as_str))
    }

    /// What was set, with its value.
    pub(crate) fn changed(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.set.iter().map(|(name, value)| (*name, value.as_str()))
    }

    fn known(&self, name: &str) -> &str {
        self.get(name).unwrap_or("")
    }

    /// Name, value, description.
    pub(crate) fn all(&self) -> Vec<(&'static str, &str, &'static str)> {
        SETTINGS.iter().map(|setting| (setting.name, self.known(setting.name), setting.description)).collect()
    }

    /// Name and typed value.
    pub(crate) fn options(&self) -> Vec<(String, OptionValue)> {
        SETTINGS
            .iter()
            .map(|setting| {
                let value = self.known(setting.name);
                let value = match setting.kind {
                    Kind::Flag => OptionValue::Flag(value == "on"),
                    Kind::Number => OptionValue::Number(value.parse().unwrap_or(0)),
                    _ => OptionValue::Text(value.to_owned()),
                };
                (setting.name.to_owned(), value)
            })
            .collect()
    }

    pub(crate) fn statement_timeout(&self) -> Duration {
        parse_time(self.known("statement_timeout")).unwrap_or_default()
    }

    pub(crate) fn lock_timeout(&self) -> Option<Duration> {
        parse_time(self.known("lock_timeout")).filter(|time| !time.is_zero())
    }

    pub(crate) fn idle_timeout(&self) -> Option<Duration> {
        parse_time(self.known("idle_in_transaction_session_timeout")).filter(|time| !time.is_zero())
    }

    pub(crate) fn default_read_only(&self) -> bool {
        self.known("default_transaction_read_only") == "on"
    }

    /// A setting that may be empty.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        Some(self.known(name)).filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// The search path as a list.
    pub(crate) fn search_path(&self) -> Vec<String> {
        self.known("search_path")
            .split(',')
            .map(|part| {
                let part = part.trim();
                match part.strip_prefix('"').and_then(|part| part.strip_suffix('"')) {
                    Some(quoted) => quoted.replace("\"\"", "\""),
                    None => part.to_lowercase(),
                }
            })
            .filter(|part| !part.is_empty() && part != "$user")
            .collect()
    }
}

fn find(name: &str) -> Result<&'static Setting> {
    let name = name.to_lowercase();
    let name = match name.as_str() {
        "time zone" | "time_zone" => "timezone",
        "schema" => "search_path",
        other => other,
    };
    SETTINGS.iter().find(|setting| setting.name == name).ok_or_else(|| {
        Error::state(SqlState::UNDEFINED_OBJECT, format!("unrecognized configuration parameter \"{name}\""))
            .with_hint("SHOW ALL lists the parameters")
    })
}

fn check(setting: &Setting, value: &str) -> Result<String> {
    let wrong = || {
        Error::state(
            SqlState::INVALID_PARAMETER_VALUE,
            format!("invalid value for parameter \"{}\": \"{value}\"", setting.name),
        )
    };
    Ok(match setting.kind {
        Kind::Text | Kind::Fixed => value.to_owned(),
        Kind::Flag => match value.to_lowercase().as_str() {
            "on" | "true" | "yes" | "1" | "t" => "on".to_owned(),
            "off" | "false" | "no" | "0" | "f" => "off".to_owned(),
            _ => return Err(wrong()),
        },
        Kind::Number => value.trim().parse::<i64>().map_err(|_| wrong())?.to_string(),
        Kind::Time => show_time(parse_time(value).ok_or_else(wrong)?),
        Kind::Word(words) => {
            let lower = value.to_lowercase();
            if setting.name == "default_transaction_isolation" && lower == "serializable" {
                return Err(crate::session::no_serializable());
            }
            if !words.contains(&lower.as_str()) {
                return Err(wrong().with_hint(format!("possible values: {}", words.join(", "))));
            }
            if setting.name == "client_encoding" { "UTF8".to_owned() } else { value.to_owned() }
        }
        Kind::Zone => match value.trim().to_lowercase().as_str() {
            "utc" | "gmt" | "etc/utc" | "etc/gmt" | "zulu" | "z" | "+00:00" | "+00" | "0" | "default" | "local" => {
                "UTC".to_owned()
            }
            _ => {
                return Err(Error::unsupported(format!("time zone \"{value}\""))
                    .with_hint("times are shown in UTC; use AT TIME ZONE to convert"));
            }
        },
    })
}

/// Milliseconds, or a number with a unit.
fn parse_time(text: &str) -> Option<Duration> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().ok()?;
    let milliseconds = match unit.trim() {
        "" | "ms" => 1.0,
        "us" => 0.001,
        "s" | "sec" | "second" | "seconds" => 1000.0,
        "min" | "minute" | "minutes" => 60_000.0,
        "h" | "hour" | "hours" => 3_600_000.0,
        "d" | "day" | "days" => 86_400_000.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * milliseconds / 1000.0).ok()
}

fn show_time(time: Duration) -> String {
    let milliseconds = time.as_millis();
    match milliseconds {
        0 => "0".to_owned(),
        it if it % 60_000 == 0 => format!("{}min", it / 60_000),
        it if it % 1000 == 0 => format!("{}s", it / 1000),
        it => format!("{it}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("250"), Some(Duration::from_millis(250)));
        assert_eq!(parse_time("2s"), Some(Duration::from_secs(2)));
        assert_eq!(parse_time("1 min"), Some(Duration::from_secs(60)));
        assert_eq!(parse_time("x"), None);
    }

    #[test]
    fn unknown_names_and_values_are_errors() {
        let mut settings = Settings::new("1", Duration::ZERO);
        assert!(settings.set("nonsense", "1").is_err());
        assert!(settings.set("timezone", "Europe/Berlin").is_err());
        assert!(settings.set("server_version", "2").is_err());
        settings.set("statement_timeout", "1500").unwrap();
        assert_eq!(settings.get("statement_timeout").unwrap(), "1500ms");
        settings.reset(None).unwrap();
        assert_eq!(settings.get("statement_timeout").unwrap(), "0");
    }
}

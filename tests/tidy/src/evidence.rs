//! Tables of figures in documents, written from `docs/evidence/*.json`, so that no figure is typed by hand.
//!
//! A document names the file and the rows between two comments; what stands between them is generated:
//! `<!-- evidence tpch_sf1: geomean q* -->` … `<!-- end of evidence -->`. A star matches the rest of a name.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

const BEGIN: &str = "<!-- evidence ";
const END: &str = "<!-- end of evidence -->";

/// A document with its tables as the evidence has them.
pub(crate) fn rendered(document: &str, folder: &Path) -> Result<String, String> {
    let mut out = String::with_capacity(document.len());
    let mut rest = document;
    while let Some(at) = rest.find(BEGIN) {
        let (before, after) = rest.split_at(at);
        let (marker, after) = after.split_once('\n').ok_or("a marker without a line end")?;
        let (_, after) = after.split_once(END).ok_or_else(|| format!("{marker} has no end"))?;
        let wanted =
            marker[BEGIN.len()..].trim_end().strip_suffix("-->").ok_or_else(|| format!("{marker} is not closed"))?;
        let (file, names) = wanted.split_once(':').ok_or_else(|| format!("{marker} names no rows"))?;
        let path = folder.join(format!("{}.json", file.trim()));
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let evidence = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        let names: Vec<&str> = names.split_whitespace().collect();
        write!(out, "{before}{marker}\n{}{END}", table(&evidence, &names)?).map_err(|error| error.to_string())?;
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// A line per name and a column per subject; medians, with the spread where it was measured more than once.
fn table(evidence: &Value, names: &[&str]) -> Result<String, String> {
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let rows = evidence["rows"].as_array().ok_or("no rows")?;
    let fits = |name: &str| {
        names.iter().any(|wanted| wanted.strip_suffix('*').map_or(name == *wanted, |prefix| name.starts_with(prefix)))
    };
    let mut subjects: Vec<String> = Vec::new();
    let mut lines: Vec<String> = Vec::new();
    for row in rows.iter().filter(|row| fits(&text(row, "name"))) {
        let (subject, name) = (text(row, "subject"), text(row, "name"));
        if !subjects.contains(&subject) {
            subjects.push(subject);
        }
        if !lines.contains(&name) {
            lines.push(name);
        }
    }
    if lines.is_empty() {
        return Err(format!("no row is called {}", names.join(" or ")));
    }
    let mut out = format!("| | {} |\n|---|{}\n", subjects.join(" | "), "--:|".repeat(subjects.len()));
    for name in &lines {
        out.push_str(&format!("| {name} |"));
        for subject in &subjects {
            let row = rows.iter().find(|row| text(row, "name") == *name && text(row, "subject") == *subject);
            let cell = row.map_or_else(
                || "–".to_owned(),
                |row| {
                    let shown = |key: &str| figure(row[key].as_f64().unwrap_or(f64::NAN), &text(row, "unit"));
                    let (low, high) = (shown("min"), shown("max"));
                    if row["n"].as_u64() > Some(1) && low != high {
                        format!("{} ({low} to {high})", shown("median"))
                    } else {
                        shown("median")
                    }
                },
            );
            out.push_str(&format!(" {cell} |"));
        }
        out.push('\n');
    }
    let versions = evidence["versions"].as_object().into_iter().flatten();
    let versions: Vec<String> =
        versions.map(|(name, version)| format!("{name} {}", version.as_str().unwrap_or("?"))).collect();
    let machine = &evidence["machine"];
    out.push_str(&format!(
        "\nCommit {}, {} cores, {} GiB; {}; `{}`\n",
        text(evidence, "commit"),
        machine["cores"],
        machine["memory_gib"],
        versions.join(", "),
        text(evidence, "command"),
    ));
    Ok(out)
}

/// Three digits and a unit that people read.
fn figure(value: f64, unit: &str) -> String {
    let digits = |value: f64| match value {
        _ if value >= 99.95 => format!("{value:.0}"),
        _ if value >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    let (steps, names): (f64, &[&str]) = match unit {
        "s" => (1000.0, &["µs", "ms", "s"]),
        "bytes" => (1024.0, &["B", "KiB", "MiB", "GiB"]),
        _ => {
            let whole = format!("{value:.0}");
            let grouped: Vec<&str> =
                whole.as_bytes().rchunks(3).rev().filter_map(|part| std::str::from_utf8(part).ok()).collect();
            let unit = if unit == "1/s" { " /s".to_owned() } else { format!(" {unit}") };
            return format!("{}{unit}", grouped.join(","));
        }
    };
    let mut value = if unit == "s" { value * 1e6 } else { value };
    let mut names = names.iter();
    let mut name = names.next();
    while value >= steps - 0.5 {
        let Some(next) = names.next() else { break };
        value /= steps;
        name = Some(next);
    }
    format!("{} {}", digits(value), name.copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        for (value, unit, shown) in [
            (3.5536e-5, "s", "35.5 µs"),
            (0.104393, "s", "104 ms"),
            (0.9999, "s", "1.00 s"),
            (6.85287, "s", "6.85 s"),
            (105.2, "s", "105 s"),
            (22582.0, "1/s", "22,582 /s"),
            (200.0, "rounds", "200 rounds"),
            (0.0, "violations", "0 violations"),
            (1.45296e9, "bytes", "1.35 GiB"),
        ] {
            assert_eq!(figure(value, unit), shown);
        }
    }

    #[test]
    fn tables_come_from_the_evidence_alone() {
        let folder = std::env::temp_dir().join(format!("lattice-tidy-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let row = |name: &str, subject: &str, median: f64, n: u64| serde_json::json!({"name": name, "subject": subject, "unit": "s", "median": median, "min": median, "max": 2.0 * median, "n": n});
        let evidence = serde_json::json!({
            "commit": "abc", "machine": {"cores": 2, "memory_gib": 24}, "versions": {"x": "1"}, "command": "make it",
            "rows": [row("q01", "a", 1.0, 5), row("q01", "b", 2.0, 1), row("q02", "a", 3.0, 5), row("other", "a", 9.0, 5)],
        });
        std::fs::write(folder.join("e.json"), evidence.to_string()).unwrap();
        let document = "Before\n<!-- evidence e: q* -->\nold\n<!-- end of evidence -->\nafter\n";
        let page = rendered(document, &folder).unwrap();
        assert!(
            page.starts_with("Before\n<!-- evidence e: q* -->\n| | a | b |\n")
                && page.ends_with("evidence -->\nafter\n"),
            "{page}"
        );
        assert!(
            page.contains("| q01 | 1.00 s (1.00 s to 2.00 s) | 2.00 s |\n| q02 | 3.00 s (3.00 s to 6.00 s) | – |\n"),
            "{page}"
        );
        assert!(!page.contains("old") && !page.contains("other"), "{page}");
        assert_eq!(rendered(&page, &folder).unwrap(), page);
        assert!(rendered("<!-- evidence e: nothing -->\n<!-- end of evidence -->", &folder).is_err());
        assert!(rendered("<!-- evidence none: q01 -->\n<!-- end of evidence -->", &folder).is_err());
        assert!(rendered("<!-- evidence e: q01 -->\n", &folder).is_err());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

//! The shape of the repository, checked as tests: who may depend on whom, who owns the large dependencies, which paths
//! the documents name, the figures they quote, and what every crate says and inherits.
//!
//! # How it works
//! [`EDGES`] is the map of `ARCHITECTURE.md`. An edge that is not in it fails the test, with a sentence that says so;
//! adding one is a decision about design, made in the same change in the map and in the document.
//!
//! # Not here
//! Formatting and lints: `make fix` and the compiler see to those.

#[cfg(test)]
mod evidence;

/// Crate, and the crates of this repository that it may use. Tools for tests may use everything.
pub const EDGES: &[(&str, &[&str])] = &[
    ("lattice-base", &[]),
    ("lattice-runtime", &["lattice-base"]),
    ("lattice-codec", &["lattice-base"]),
    ("lattice-journal", &["lattice-base", "lattice-runtime"]),
    ("lattice-raft", &["lattice-base", "lattice-runtime", "lattice-journal"]),
    ("lattice-rows", &["lattice-base"]),
    ("lattice-columns", &["lattice-base", "lattice-runtime", "lattice-codec"]),
    (
        "lattice-storage",
        &[
            "lattice-base",
            "lattice-runtime",
            "lattice-codec",
            "lattice-journal",
            "lattice-raft",
            "lattice-rows",
            "lattice-columns",
        ],
    ),
    ("lattice-sql", &["lattice-base", "lattice-storage", "lattice-codec"]),
    ("lattice-flight", &["lattice-base", "lattice-sql"]),
    ("lattice-server", &["lattice-base", "lattice-runtime", "lattice-storage", "lattice-sql", "lattice-flight"]),
];

/// Large dependency (a name, or a prefix that ends with `*`), and the crates that may use it directly.
pub const OWNERS: &[(&str, &[&str])] = &[
    ("openraft*", &["lattice-raft"]),
    ("lance*", &["lattice-columns"]),
    ("object_store", &["lattice-columns"]),
    ("datafusion*", &["lattice-sql"]),
    ("sqlparser", &["lattice-sql"]),
    // The shell is a client and speaks Flight SQL from the other end.
    ("arrow-flight", &["lattice-flight", "lattice-server", "lattice-slt"]),
    ("axum", &["lattice-server"]),
];

/// Crates under `tests/`: they look at everything. `lattice-pins` only names dependencies.
pub const TOOLS: &[&str] = &["lattice-tidy", "lattice-slt", "lattice-pins"];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

    use super::*;

    fn root() -> PathBuf {
        // Cargo runs tests in the folder of their package. The path it was compiled under may be another clone's.
        Path::new("../..").canonicalize().unwrap()
    }

    fn metadata() -> Metadata {
        MetadataCommand::new().manifest_path(root().join("Cargo.toml")).no_deps().exec().unwrap()
    }

    fn each_crate(mut check: impl FnMut(&Package, &mut Vec<String>)) {
        let mut faults = Vec::new();
        for package in &metadata().packages {
            check(package, &mut faults);
        }
        assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    }

    #[test]
    fn only_the_edges_of_the_map_exist() {
        each_crate(|package, faults| {
            let name = package.name.as_str();
            if TOOLS.contains(&name) {
                return;
            }
            let Some((_, allowed)) = EDGES.iter().find(|(from, _)| *from == name) else {
                return faults.push(format!("{name} is not in the map: add it to EDGES and to ARCHITECTURE.md"));
            };
            for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
                // Tests of a crate may look further down, never up: cargo refuses those cycles itself.
                if dependency.kind == DependencyKind::Normal && !allowed.contains(&dependency.name.as_str()) {
                    faults.push(format!(
                        "{name} must not use {}: the map of ARCHITECTURE.md has no such edge",
                        dependency.name
                    ));
                }
            }
        });
    }

    #[test]
    fn large_dependencies_have_one_owner() {
        let fits = |pattern: &str, name: &str| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => pattern == name,
        };
        each_crate(|package, faults| {
            if package.name.as_str() == "lattice-pins" {
                return;
            }
            for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_none()) {
                for (pattern, owners) in OWNERS {
                    if fits(pattern, &dependency.name) && !owners.contains(&package.name.as_str()) {
                        faults.push(format!(
                            "{} must not use {}: it belongs to {}",
                            package.name,
                            dependency.name,
                            owners.join(", ")
                        ));
                    }
                }
            }
        });
    }

    #[test]
    fn every_crate_inherits_the_lints() {
        each_crate(|package, faults| {
            let text = std::fs::read_to_string(&package.manifest_path).unwrap();
            if !text.replace(' ', "").contains("[lints]\nworkspace=true") {
                faults.push(format!("{}: Cargo.toml must end with [lints] workspace = true", package.name));
            }
        });
    }

    #[test]
    fn every_module_says_what_it_is() {
        let mut faults = Vec::new();
        for path in files(&root(), &["rs"]) {
            let text = std::fs::read_to_string(root().join(&path)).unwrap();
            let is_test = path.components().any(|part| part.as_os_str() == "tests") && !path.starts_with("tests");
            let documented = text
                .lines()
                .find(|line| !line.trim().is_empty())
                .is_some_and(|line| line.starts_with("//!") || line.starts_with("#!["));
            if !documented && !is_test {
                faults.push(format!("{} does not start with //! module documentation", path.display()));
            }
        }
        assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    }

    /// A path in a document is written in backquotes and holds a slash; it must exist.
    #[test]
    fn paths_named_in_documents_exist() {
        let mut faults = Vec::new();
        for document in files(&root(), &["md"]) {
            if document.starts_with("docs/design") {
                // Design notes may speak of what was rejected or is to come.
                continue;
            }
            let text = std::fs::read_to_string(root().join(&document)).unwrap();
            let mut fenced = false;
            for (number, line) in text.lines().enumerate() {
                fenced ^= line.trim_start().starts_with("```");
                if fenced {
                    continue;
                }
                for word in line.split('`').skip(1).step_by(2) {
                    if looks_like_a_path(word) && !exists(&document, word) {
                        faults.push(format!("{}:{}: `{word}` does not exist", document.display(), number + 1));
                    }
                }
                for target in links(line) {
                    if !exists(&document, target) {
                        faults.push(format!(
                            "{}:{}: the link to {target} leads nowhere",
                            document.display(),
                            number + 1
                        ));
                    }
                }
            }
        }
        assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    }

    fn looks_like_a_path(word: &str) -> bool {
        let first = word.split('/').next().unwrap_or_default();
        let top: BTreeSet<String> =
            std::fs::read_dir(root()).unwrap().filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        word.contains('/') && top.contains(first) && word.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c))
    }

    fn links(line: &str) -> impl Iterator<Item = &str> {
        line.split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')').map(|(target, _)| target.split('#').next().unwrap_or_default()))
            .filter(|target| !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:"))
    }

    fn exists(document: &Path, target: &str) -> bool {
        let folder = root().join(document.parent().unwrap_or(Path::new("")));
        // Generated folders are named before they are made.
        let generated = ["build/", "lattice-data", "target/"].iter().any(|prefix| target.starts_with(prefix));
        generated || root().join(target).exists() || folder.join(target).exists()
    }

    #[test]
    fn figures_in_documents_are_current() {
        let mut faults = Vec::new();
        for path in files(&root(), &["md"]) {
            let there = std::fs::read_to_string(root().join(&path)).unwrap();
            match evidence::rendered(&there, &root().join("docs/evidence")) {
                Ok(page) if page == there => {}
                Ok(page) if std::env::var_os("LATTICE_BLESS").is_some() => {
                    std::fs::write(root().join(&path), page).unwrap()
                }
                Ok(_) => {
                    faults.push(format!("{}: its tables are stale: run this test with LATTICE_BLESS=1", path.display()))
                }
                Err(error) => faults.push(format!("{}: {error}", path.display())),
            }
        }
        assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    }

    #[test]
    fn nothing_is_left_unfinished() {
        let marks = [
            concat!("to", "do!("),
            concat!("unimple", "mented!("),
            concat!("FIX", "ME"),
            concat!("TO", "DO"),
            concat!("XX", "X:"),
        ];
        let mut faults = Vec::new();
        for path in files(&root(), &["rs", "py", "sh", "md", "toml"]) {
            let text = std::fs::read_to_string(root().join(&path)).unwrap_or_default();
            for (number, line) in text.lines().enumerate() {
                if let Some(mark) = marks.iter().find(|mark| line.contains(*mark)) {
                    faults.push(format!("{}:{}: {mark}", path.display(), number + 1));
                }
            }
        }
        assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    }

    /// Every SQL golden file that skips a configuration says why.
    #[test]
    fn skips_give_their_reason() {
        let mut faults = Vec::new();
        for path in files(&root(), &["slt"]) {
            let text = std::fs::read_to_string(root().join(&path)).unwrap();
            let mut before = "";
            for (number, line) in text.lines().enumerate() {
                if (line.starts_with("skipif") || line.starts_with("onlyif")) && !before.starts_with('#') {
                    faults.push(format!(
                        "{}:{}: a comment on the line before must say why",
                        path.display(),
                        number + 1
                    ));
                }
                before = line;
            }
        }
        assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    }

    /// Files with one of the extensions, without what version control ignores.
    fn files(root: &Path, extensions: &[&str]) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![root.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap().filter_map(Result::ok) {
                let (path, name) = (entry.path(), entry.file_name().into_string().unwrap_or_default());
                if path.is_dir() {
                    if !name.starts_with('.')
                        && !["target", "build", "lattice-data", "__pycache__"].contains(&name.as_str())
                    {
                        folders.push(path);
                    }
                } else if path.extension().is_some_and(|extension| extensions.iter().any(|known| extension == *known)) {
                    found.push(path.strip_prefix(root).unwrap().to_path_buf());
                }
            }
        }
        found.sort();
        found
    }
}

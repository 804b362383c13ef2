//! Holds the features of all dependencies together; see its `Cargo.toml`. There is no code here.

//! Numbers as people read them.

/// Grouped digits and a noun that agrees: `1 file`, `1,250 files`.
pub(crate) fn counted(number: impl Into<u64>, noun: &str) -> String {
    let number = number.into();
    let ending = if number == 1 { "" } else { "s" };
    format!("{} {noun}{ending}", indicatif::HumanCount(number))
}

/// `1.50 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nouns_agree() {
        assert_eq!(counted(0_u64, "file"), "0 files");
        assert_eq!(counted(1_u64, "file"), "1 file");
        assert_eq!(counted(1_250_000_u64, "row"), "1,250,000 rows");
    }
}

//! Sizes in bytes with units. Pure.

/// What would be right.
const RIGHT: &str = "it should be a size like 100GB, 512MiB or 4096";

/// Below this a number without a unit is a unit that was forgotten.
const LEAST_BARE: u64 = 1024;

/// A size in bytes: `100GB` (powers of 1000), `512MiB` or docker's `512m` (powers of 1024), `4096`. Units may be in
/// capitals or not.
///
/// # Errors
/// What is wrong, and what would be right.
pub fn byte_size(text: &str) -> Result<u64, String> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(RIGHT.to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| RIGHT.to_owned())?;
    if unit.trim().is_empty() && (1..LEAST_BARE).contains(&number) {
        return Err(format!("{number} bytes are meant without a unit; write {number}GB, {number}MB or {number}B"));
    }
    number.checked_mul(factor).ok_or_else(|| "it is larger than any disk".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1000_or_of_1024() {
        for (text, bytes) in [
            ("4096", 4096),
            ("1 B", 1),
            ("2kB", 2_000),
            ("100GB", 100_000_000_000),
            ("3TB", 3_000_000_000_000),
            ("512m", 512 << 20),
            ("10g", 10 << 30),
            ("8GiB", 8 << 30),
            ("1 tib", 1 << 40),
        ] {
            assert_eq!(byte_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "1.5GB", "-1", "5 apples"] {
            assert_eq!(byte_size(text).unwrap_err(), RIGHT, "{text}");
        }
        assert!(byte_size("10").unwrap_err().contains("write 10GB"));
        assert_eq!(byte_size("0"), Ok(0));
        assert_eq!(byte_size("99999999t").unwrap_err(), "it is larger than any disk");
    }
}

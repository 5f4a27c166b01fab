//! Sizes written for people: `512MiB`, `1GB`, `64KiB`, or plain bytes.

use crate::error::{Error, Result};

/// Parses a size into bytes. Binary units (`KiB`, `MiB`, `GiB`, `TiB`), decimal ones (`KB`, `MB`, `GB`, `TB`), `B` or none;
/// a fraction is fine (`1.5GiB`). Fails with `InvalidInput`, quoting the text.
pub fn parse_bytes(text: &str) -> Result<u64> {
    let wrong = |why: &str| {
        Error::invalid(format!(
            "size \"{text}\" {why}; write it as 512MiB, 1GB or in bytes"
        ))
    };
    let trimmed = text.trim();
    if trimmed.starts_with('-') {
        return Err(wrong("is negative"));
    }
    let digits = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "kb" => 1000,
        "m" | "mib" => 1 << 20,
        "mb" => 1_000_000,
        "g" | "gib" => 1 << 30,
        "gb" => 1_000_000_000,
        "t" | "tib" => 1 << 40,
        "tb" => 1_000_000_000_000,
        _ => return Err(wrong("has an unknown unit")),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale).ok_or_else(|| wrong("is too large"));
    }
    match number.parse::<f64>() {
        Ok(value) if value.is_finite() && value * (scale as f64) < 9.0e18 => {
            Ok((value * scale as f64) as u64)
        }
        _ => Err(wrong("is not a number with a unit")),
    }
}

/// Writes bytes for people, in binary units.
pub fn format_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    for (unit, scale) in UNITS {
        if bytes >= scale {
            return if bytes.is_multiple_of(scale) {
                format!("{}{unit}", bytes / scale)
            } else {
                format!("{:.2}{unit}", bytes as f64 / scale as f64)
            };
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_binary_or_decimal() {
        for (text, bytes) in [
            ("0", 0),
            ("512MiB", 512 << 20),
            ("1GB", 1_000_000_000),
            ("64 KiB", 65536),
            ("1.5GiB", 3 << 29),
            ("7b", 7),
        ] {
            assert_eq!(parse_bytes(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn wrong_sizes_are_quoted() {
        for text in ["", "-1GB", "12 parsecs", "GiB", "99999999999TiB", "1..2", "1e400"] {
            let error = parse_bytes(text).unwrap_err().to_string();
            assert!(error.contains(&format!("\"{text}\"")), "{error}");
        }
    }

    #[test]
    fn formatting_is_short() {
        assert_eq!(format_bytes(512 << 20), "512MiB");
        assert_eq!(format_bytes(1536), "1.50KiB");
        assert_eq!(format_bytes(12), "12B");
    }
}

//! Sizes as people write and read them.

const UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Bytes from `4096`, `64MiB`, `1.5 GiB`, `2T` (binary units throughout).
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let factor = match unit.as_str() {
        "" => 1,
        unit => UNITS
            .iter()
            .find(|(name, _)| {
                let name = name.to_ascii_lowercase();
                name == unit || name.get(..1) == Some(unit) || name.replace('i', "") == unit
            })
            .map(|(_, factor)| *factor)
            .ok_or_else(|| format!("unknown unit in {text:?}: want B, KiB, MiB, GiB or TiB"))?,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"));
    }
    let value: f64 = number.parse().map_err(|_| format!("{text:?} is not a size, for example 64MiB"))?;
    Ok((value * factor as f64) as u64)
}

/// `0` as "none", else the largest unit that leaves at least one.
pub fn show_limit(bytes: u64) -> String {
    if bytes == 0 { "none".into() } else { show(bytes) }
}

/// Bytes in the largest unit that leaves at least one, with one decimal where it is not whole.
pub fn show(bytes: u64) -> String {
    let (name, factor) = UNITS.iter().find(|(_, factor)| bytes >= *factor).unwrap_or(&UNITS[4]);
    if bytes.is_multiple_of(*factor) {
        format!("{} {name}", bytes / factor)
    } else {
        format!("{:.1} {name}", bytes as f64 / *factor as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_usual_spelling() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64MiB", 64 << 20),
            ("1.5GiB", 3 << 29),
            ("2T", 2 << 40),
            ("1kb", 1024),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "x", "12Q", "-1", "99999999TiB"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!([show(0), show(1536), show(64 << 20)], ["0 B", "1.5 KiB", "64 MiB"]);
    }
}

//! Ages and sizes as people write them.

use std::time::Duration;

/// Reads an age: `90s`, `45min`, `12h`, `30d`, `2w`; a number alone is refused, as it could be anything.
pub(super) fn age(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let seconds = match unit {
        "s" | "sec" => 1,
        "m" | "min" => 60,
        "h" => 60 * 60,
        "d" | "day" | "days" => 24 * 60 * 60,
        "w" | "week" | "weeks" => 7 * 24 * 60 * 60,
        _ => return Err("write it as a number and s, min, h, d or w, such as 30d".to_owned()),
    };
    let seconds = number.checked_mul(seconds).ok_or("it is too long")?;
    Ok(Duration::from_secs(seconds))
}

/// Reads a size in bytes: `500MB` and the like in powers of ten, `20G` and `20GiB` in powers of two.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let (prefix, base) = match unit.strip_suffix('B') {
        Some(prefix) if !prefix.is_empty() && !prefix.ends_with('i') => (prefix, 1000_u64),
        Some(prefix) => (prefix.trim_end_matches('i'), 1024),
        None => (unit.trim_end_matches('i'), 1024),
    };
    let power = match prefix {
        "" => 0,
        "k" | "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return Err("write it as a number and K, M, G or T, such as 20G".to_owned()),
    };
    let factor = base.checked_pow(power);
    factor
        .and_then(|factor| number.checked_mul(factor))
        .ok_or_else(|| "it is too large".to_owned())
}

fn split(text: &str) -> Result<(u64, &str), String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number = number.parse().map_err(|_| match number {
        "" => "it starts with no number".to_owned(),
        _ => "the number is too large".to_owned(),
    })?;
    Ok((number, unit.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_sizes() {
        for (text, seconds) in [
            ("90s", 90),
            ("45 min", 2700),
            ("12h", 43_200),
            ("2w", 1_209_600),
        ] {
            assert_eq!(age(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in [
            "",
            "30",
            "d",
            "1.5h",
            "-1d",
            "3y",
            "99999999999999999999d",
            "9999999999999999999w",
        ] {
            assert!(age(text).is_err(), "{text}");
        }
        let sizes = [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("20G", 20 << 30),
            ("20GiB", 20 << 30),
            ("20Gi", 20 << 30),
            ("500MB", 500_000_000),
            ("1kB", 1000),
            ("1K", 1024),
        ];
        for (text, size) in sizes {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for text in ["", "G", "1X", "-1", "99999999T", "1.5G"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}

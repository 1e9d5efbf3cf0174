//! Durations and sizes as job files write them: Go's `5m30s` and the incumbent's `512m`.
//! Absent: defaults (config.rs and task_config.rs hold them).

use std::time::Duration;

/// A text that is no duration or no size. The text says what would be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// Not a duration in Go's notation.
    #[error("{text:?} is not a duration: write a number and a unit, as in \"5m\", \"90s\" or \"1h30m\"")]
    Duration {
        /// What was written.
        text: String,
    },
    /// Not a size.
    #[error("{text:?} is not a size: write bytes, or a number followed by b, k, m or g, as in \"512m\"")]
    Size {
        /// What was written.
        text: String,
    },
}

/// Reads a duration as Go's `time.ParseDuration` does, without signs: "300ms", "1.5h", "2h45m". "0" needs no unit.
///
/// # Errors
/// `UnitError::Duration` for everything else.
pub fn duration(text: &str) -> Result<Duration, UnitError> {
    let bad = || UnitError::Duration { text: text.to_owned() };
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(bad());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let letters = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let seconds = match &rest[..letters] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())?;
        total = total.checked_add(part).ok_or_else(bad)?;
        rest = &rest[letters..];
    }
    Ok(total)
}

/// Reads a size in bytes: a bare number, or a number with b, k, m or g (powers of 1024, case does not matter).
///
/// # Errors
/// `UnitError::Size` for everything else, also for sizes outside of 63 bits.
pub fn bytes(text: &str) -> Result<i64, UnitError> {
    let bad = || UnitError::Size { text: text.to_owned() };
    let trimmed = text.trim();
    let (digits, shift) = match trimmed.char_indices().last() {
        Some((at, 'b' | 'B')) => (&trimmed[..at], 0),
        Some((at, 'k' | 'K')) => (&trimmed[..at], 10),
        Some((at, 'm' | 'M')) => (&trimmed[..at], 20),
        Some((at, 'g' | 'G')) => (&trimmed[..at], 30),
        _ => (trimmed, 0),
    };
    let number: i64 = digits.parse().map_err(|_| bad())?;
    if number < 0 {
        return Err(bad());
    }
    number.checked_mul(1 << shift).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, millis) in [
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("250ms", 250),
            ("1.5s", 1500),
            ("0", 0),
            ("2m0.5s", 120_500),
        ] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "5", "m", "5x", "-5s", "5m 3s", "1e3s", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn sizes_have_units_or_none() {
        for (text, want) in [
            ("1024", 1024),
            ("1b", 1),
            ("2k", 2048),
            ("512m", 512 << 20),
            ("1G", 1 << 30),
        ] {
            assert_eq!(bytes(text).unwrap(), want, "{text}");
        }
        for text in ["", "m", "-1m", "1.5g", "1t", "99999999999g", "é"] {
            assert!(bytes(text).is_err(), "{text:?} was taken");
        }
    }
}

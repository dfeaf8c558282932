//! Texts with units: `1h30m`, `512MiB`. A bare number is refused: everyone reads another unit into it.

/// Milliseconds of `90s`, `10m`, `1h30m`, `2d`; what is wrong with it otherwise.
pub(super) fn duration_ms(text: &str) -> Result<u64, String> {
    const UNITS: [(char, u64); 4] = [('d', 86_400_000), ('h', 3_600_000), ('m', 60_000), ('s', 1000)];
    let mut total: u64 = 0;
    let mut units = UNITS.iter();
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let Some(unit) = tail.chars().next() else {
            return Err(format!("`{text}` ends without a unit: for instance `{text}s`, `{text}m` or `{text}h`"));
        };
        let Ok(number) = number.parse::<u64>() else {
            return Err(format!("`{text}` is not a duration: write whole numbers with units, for instance `1h30m`"));
        };
        // Units are used up from the largest on, so that none comes twice or in the wrong order.
        let Some((_, ms)) = units.find(|(letter, _)| *letter == unit) else {
            return Err(format!("`{text}` is not a duration: d, h, m, s, in this order and each once, as in `1h30m`"));
        };
        let part = number.checked_mul(*ms);
        total = part.and_then(|part| total.checked_add(part)).ok_or_else(|| format!("`{text}` is too long"))?;
        rest = &tail[unit.len_utf8()..];
    }
    if text.is_empty() {
        return Err("an empty duration: write for instance `10m`".to_owned());
    }
    Ok(total)
}

/// Bytes of `512MiB`; what is wrong with it otherwise.
pub(super) fn size_bytes(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        other => {
            let meant = match other.to_ascii_lowercase().as_str() {
                "k" | "kb" | "kib" => "KiB",
                "g" | "gb" | "gib" => "GiB",
                _ => "MiB",
            };
            let number = if digits == 0 { "512" } else { number };
            return Err(format!("`{text}` is no size: write KiB, MiB or GiB, as in `{number}{meant}`"));
        }
    };
    let number = number.parse::<u64>().map_err(|_| format!("`{text}` is no size: as in `512MiB`"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("`{text}` is more than any machine has"))
}

/// `1h30m` of milliseconds, for people.
pub fn duration_text(ms: u64) -> String {
    let seconds = ms / 1000;
    let parts = [(seconds / 3600, "h"), (seconds / 60 % 60, "m"), (seconds % 60, "s")];
    let parts: Vec<_> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    if parts.is_empty() { format!("{ms}ms") } else { parts.concat() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 172_800), ("1d1h1m1s", 90_061)] {
            assert_eq!(duration_ms(text), Ok(seconds * 1000), "{text}");
        }
        for bad in ["", "90", "m", "1m1h", "1h1h", "1.5h", "-1s", "1 h", "5ms", "1w", "99999999999999d", "ü", "1ü"] {
            assert!(duration_ms(bad).is_err(), "{bad:?}");
        }
        assert!(duration_ms("90").unwrap_err().contains("`90s`"));
        assert_eq!([5_400_000, 1000, 0, 90_061_000].map(duration_text), ["1h30m", "1s", "0ms", "25h1m1s"]);
    }

    #[test]
    fn sizes() {
        assert_eq!(size_bytes("512MiB"), Ok(512 << 20));
        assert_eq!(size_bytes("2GiB"), Ok(2 << 30));
        for (bad, mend) in [("512", "512MiB"), ("512m", "512MiB"), ("2GB", "2GiB"), ("", "512MiB"), ("MiB", "512MiB")] {
            let error = size_bytes(bad).unwrap_err();
            assert!(error.contains(mend), "{bad:?}: {error}");
        }
        assert!(size_bytes("99999999999GiB").unwrap_err().contains("any machine"));
    }
}

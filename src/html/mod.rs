//! The parts that the operators' pages of the daemons share: text that is safe in HTML, numbers and times for people,
//! the frame of a page, its query and its answers, and the files that it loads.
//!
//! Reading order: this file, `query` (the selection of a request), `selection` (the selected rows), `frame` (the page
//! around the rows), `answer`, `assets`.
//!
//! Invariant: names come from ZooKeeper and Kafka, where `<script>` is a legal name. They reach a page only through
//! [`Text`], in elements and in quoted attributes, and through [`Encoded`] in links.

pub(crate) mod answer;
pub(crate) mod assets;
pub(crate) mod frame;
pub(crate) mod query;
pub(crate) mod selection;
#[cfg(test)]
mod test_page;
#[cfg(test)]
pub(crate) mod test_support;

use std::fmt::{self, Display, Formatter, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::clock::Moment;

/// A text for an element or a quoted attribute: no character of it can end either.
pub(crate) struct Text<'a>(pub(crate) &'a str);

impl Display for Text<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(|character| replacement(character).is_some()) {
            let (plain, special) = rest.split_at(at);
            let character = special.chars().next().unwrap_or_default();
            formatter.write_str(plain)?;
            formatter.write_str(replacement(character).unwrap_or_default())?;
            rest = &special[character.len_utf8()..];
        }
        formatter.write_str(rest)
    }
}

fn replacement(character: char) -> Option<&'static str> {
    match character {
        '&' => Some("&amp;"),
        '<' => Some("&lt;"),
        '>' => Some("&gt;"),
        '"' => Some("&quot;"),
        '\'' => Some("&#39;"),
        // Control characters are invisible, and these change the direction of the text that follows them.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => Some("\u{fffd}"),
        control if control.is_control() => Some("\u{fffd}"),
        _ => None,
    }
}

/// A value for the query of a link, percent-encoded: safe in a quoted attribute, too.
pub(crate) struct Encoded<'a>(pub(crate) &'a str);

impl Display for Encoded<'_> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        for byte in self.0.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                formatter.write_char(char::from(byte))?;
            } else {
                write!(formatter, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

/// A number with a comma after each three digits: `1,204`.
pub(crate) struct Count(pub(crate) u64);

impl Display for Count {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (index, digit) in digits.chars().enumerate() {
            if index > 0 && (digits.len() - index).is_multiple_of(3) {
                formatter.write_char(',')?;
            }
            formatter.write_char(digit)?;
        }
        Ok(())
    }
}

/// A number of bytes in one unit: `512 B`, `64 KiB`, `1.5 MiB`.
pub(crate) struct Bytes(pub(crate) u64);

impl Display for Bytes {
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let Some(power) = (self.0.max(1).ilog2() / 10).checked_sub(1) else {
            return write!(formatter, "{} B", self.0);
        };
        let (unit, shown) = (units[power as usize], self.0 as f64 / 1024_f64.powi(power as i32 + 1));
        let decimals = usize::from(shown < 9.95 && !self.0.is_multiple_of(1024_u64.pow(power + 1)));
        write!(formatter, "{shown:.decimals$} {unit}")
    }
}

/// A number of events a second, with as many digits as people read: `0`, `0.04`, `3.2`, `48`, `1,204`.
pub(crate) struct Rate(pub(crate) f64);

impl Display for Rate {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            rate if rate.is_nan() || rate <= 0.0 => formatter.write_str("0"),
            rate if rate < 0.005 => formatter.write_str("&lt;0.01"),
            rate if rate < 0.95 => write!(formatter, "{rate:.2}"),
            rate if rate < 9.95 => write!(formatter, "{rate:.1}"),
            // A conversion of f64 to u64 saturates, so no value is out of range.
            rate => Count(rate.round() as u64).fmt(formatter),
        }
    }
}

/// A duration in one unit: `95 s`, `4 min`, `3 h`, `2 d`. The script of the page has the same function.
pub(crate) struct Span(pub(crate) Duration);

impl Display for Span {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            seconds @ ..100 => write!(formatter, "{seconds} s"),
            seconds @ ..6_000 => write!(formatter, "{} min", seconds / 60),
            seconds @ ..172_800 => write!(formatter, "{} h", seconds / 3_600),
            seconds => write!(formatter, "{} d", seconds / 86_400),
        }
    }
}

/// A time in UTC to the second, as in RFC 3339: `2026-11-25T18:01:35Z`. Times before 1970 are 1970.
pub(crate) struct Utc(pub(crate) SystemTime);

impl Display for Utc {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let since_epoch = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = since_epoch.as_secs();
        let (year, month, day) = calendar_day(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
        write!(formatter, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }
}

/// Returns the time since `at` as an element that the script of the page keeps current.
pub(crate) fn ago(at: Instant, now: Moment) -> String {
    let age = now.at.saturating_duration_since(at);
    since(now.wall.checked_sub(age).unwrap_or(UNIX_EPOCH), now)
}

/// Returns the time since `at` as an element that the script of the page keeps current.
pub(crate) fn since(at: SystemTime, now: Moment) -> String {
    let age = now.wall.duration_since(at).unwrap_or_default();
    format!("<time datetime=\"{}\">{}</time>", Utc(at), Span(age))
}

/// Returns the time `ms` before `at`.
pub(crate) fn before(at: Instant, ms: u64) -> Instant {
    at.checked_sub(Duration::from_millis(ms)).unwrap_or(at)
}

/// Returns year, month and day of a number of days since 1970. The computed year begins in March, so that the day that
/// is sometimes missing is its last one (Hinnant, "chrono-compatible low-level date algorithms").
fn calendar_day(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_of_a_name_can_end_an_element_or_an_attribute() {
        for (name, text) in [
            ("module_1", "module_1"),
            ("größe 東", "größe 東"),
            ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
            ("a\" b' & c", "a&quot; b&#39; &amp; c"),
            ("&lt;", "&amp;lt;"),
            ("line\nend\0\u{7f}\u{85}", "line\u{fffd}end\u{fffd}\u{fffd}\u{fffd}"),
            ("\u{202e}desrever\u{2066}", "\u{fffd}desrever\u{fffd}"),
        ] {
            assert_eq!(Text(name).to_string(), text, "{name:?}");
        }
        assert_eq!(Encoded("a b&c=<\"é+").to_string(), "a%20b%26c%3D%3C%22%C3%A9%2B");
    }

    #[test]
    fn numbers_and_durations_are_short() {
        for (number, text) in
            [(0, "0"), (999, "999"), (1_204, "1,204"), (99_000, "99,000"), (u64::MAX, "18,446,744,073,709,551,615")]
        {
            assert_eq!(Count(number).to_string(), text);
        }
        for (rate, text) in [
            (0.0, "0"),
            (f64::NAN, "0"),
            (0.004, "&lt;0.01"),
            (0.25, "0.25"),
            (3.21, "3.2"),
            (9.99, "10"),
            (48.4, "48"),
            (1_204.2, "1,204"),
            (f64::INFINITY, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(Rate(rate).to_string(), text);
        }
        for (bytes, text) in [
            (0, "0 B"),
            (1_023, "1023 B"),
            (1_024, "1 KiB"),
            (1_536, "1.5 KiB"),
            (64 << 20, "64 MiB"),
            ((64 << 20) + 7, "64 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
        for (seconds, text) in [
            (0, "0 s"),
            (99, "99 s"),
            (100, "1 min"),
            (5_999, "99 min"),
            (6_000, "1 h"),
            (172_799, "47 h"),
            (172_800, "2 d"),
            (u64::MAX, "213503982334601 d"),
        ] {
            assert_eq!(Span(Duration::from_secs(seconds)).to_string(), text);
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_629_695, "2026-11-25T18:01:35Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_millis(999);
            assert_eq!(Utc(time).to_string(), text);
        }
        assert_eq!(Utc(UNIX_EPOCH - Duration::from_secs(1)).to_string(), "1970-01-01T00:00:00Z");
    }
}

//! The header `Retry-After`: a number of seconds, or a date in one of the three forms of RFC 9110, section 5.6.7.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const SECONDS_PER_DAY: u64 = 86_400;

/// Returns the pause that the header's `value` requests at the time `now`; `None` if the value has no legal form. The
/// caller limits the pause.
pub(super) fn retry_after(value: &[u8], now: SystemTime) -> Option<Duration> {
    let text = std::str::from_utf8(value).ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that does not fit is a very long pause.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let now_s = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Some(Duration::from_secs(http_date(text, now_s)?.saturating_sub(now_s)))
}

/// Parses a date; returns the seconds since 1970. `now_s` decides the century of a year with two digits.
fn http_date(text: &str, now_s: u64) -> Option<u64> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    match words[..] {
        // IMF-fixdate: Sun, 06 Nov 1994 08:49:37 GMT
        [_, day, month, year, time, "GMT"] => seconds_since_1970(number(year, 4)?, month, number(day, 2)?, time),
        // RFC 850: Sunday, 06-Nov-94 08:49:37 GMT
        [_, date, time, "GMT"] => {
            let parts: Vec<&str> = date.split('-').collect();
            let [day, month, year] = parts[..] else { return None };
            seconds_since_1970(full_year(number(year, 2)?, now_s), month, number(day, 2)?, time)
        }
        // asctime: Sun Nov  6 08:49:37 1994
        [_, month, day, time, year] => {
            seconds_since_1970(number(year, 4)?, month, number(day, day.len().clamp(1, 2))?, time)
        }
        _ => None,
    }
}

/// A year with two digits that would be more than 50 years in the future is in the past.
fn full_year(two_digits: u64, now_s: u64) -> u64 {
    let this_year = 1970 + now_s / (365 * SECONDS_PER_DAY + SECONDS_PER_DAY / 4);
    let year = this_year / 100 * 100 + two_digits;
    if year > this_year + 50 { year - 100 } else { year }
}

fn number(text: &str, n_digits: usize) -> Option<u64> {
    let is_number = text.len() == n_digits && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// Returns `None` for a date that does not exist. A date before 1970 counts as 1970.
fn seconds_since_1970(year: u64, month: &str, day: u64, time: &str) -> Option<u64> {
    let month = MONTHS.iter().position(|name| *name == month)?;
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days_of_month = |month: usize| match month {
        1 => 28 + u64::from(is_leap(year)),
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    };
    if !(1..=days_of_month(month)).contains(&day) {
        return None;
    }
    let parts: Vec<&str> = time.split(':').collect();
    let [hour, minute, second] = parts[..] else { return None };
    let (hour, minute, second) = (number(hour, 2)?, number(minute, 2)?, number(second, 2)?);
    // 60 is a leap second.
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    if year < 1970 {
        return Some(0);
    }
    let before = year - 1;
    let leap_days = (before / 4 - before / 100 + before / 400) - (1969 / 4 - 1969 / 100 + 1969 / 400);
    let days = (year - 1970) * 365 + leap_days + (0..month).map(days_of_month).sum::<u64>() + day - 1;
    Some(days * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT
    const EXAMPLE_S: u64 = 784_111_777;

    fn pause_s(value: &str, now_s: u64) -> Option<u64> {
        retry_after(value.as_bytes(), UNIX_EPOCH + Duration::from_secs(now_s)).map(|pause| pause.as_secs())
    }

    #[test]
    fn seconds_and_the_three_forms_of_a_date_are_understood() {
        let now_s = EXAMPLE_S - 5;
        for (value, expected) in [
            ("3", Some(3)),
            (" 3 ", Some(3)),
            ("0", Some(0)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(5)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(5)),
            ("Sun Nov  6 08:49:37 1994", Some(5)),
            ("Sun Nov 16 08:49:37 1994", Some(5 + 10 * 86_400)),
            // A date in the past.
            ("Sun, 06 Nov 1994 08:49:30 GMT", Some(0)),
            ("Thu, 31 Dec 1899 23:59:59 GMT", Some(0)),
            ("Sunday, 06-Nov-60 08:49:37 GMT", Some(0)),
            ("Thu, 29 Feb 1996 00:00:60 GMT", Some(825_552_060 - now_s)),
            ("", None),
            ("-1", None),
            ("3.5", None),
            ("+3", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 6 Nov 1994 08:49:37 GMT", None),
            ("Sun, 31 Nov 1994 08:49:37 GMT", None),
            ("Wed, 29 Feb 1995 08:49:37 GMT", None),
            ("Sun, 06 Nov 1994 24:00:00 GMT", None),
            ("Sun, 06 Nov 1994 08:49 GMT", None),
            ("Sun, 06 nov 1994 08:49:37 GMT", None),
        ] {
            assert_eq!(pause_s(value, now_s), expected, "{value:?}");
        }
        assert_eq!(retry_after(b"\xff", UNIX_EPOCH), None);
    }

    #[test]
    fn a_year_with_two_digits_is_near_the_present() {
        // In 2026, 2030 is meant by 30 and 1994 by 94.
        let now_s = 1_793_000_000;
        assert_eq!(pause_s("Wednesday, 06-Nov-30 08:49:37 GMT", now_s), Some(1_920_185_377 - now_s));
        assert_eq!(pause_s("Sunday, 06-Nov-94 08:49:37 GMT", now_s), Some(0));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_without_a_panic(text in ".{0,40}", now_s in 0u64..4_000_000_000) {
            let _ = pause_s(&text, now_s);
        }

        #[test]
        fn dates_grow_with_the_day(day in 1u64..=31, month in 0usize..12, year in 1970u64..9999) {
            let at = |hour: &str| seconds_since_1970(year, MONTHS[month], day, hour);
            if let (Some(first), Some(second)) = (at("00:00:00"), at("23:59:59")) {
                prop_assert_eq!(second - first, 86_399);
                prop_assert_eq!(first % 86_400, 0);
            }
        }
    }
}

//! `ejection`: when a backend that fails is taken out of use, and for how long.

use std::time::Duration;

use super::protocol::MAX_DURATION_MS;
use crate::config::{Problems, Section};
use crate::ktransfer::backends::{EjectionConfig, RateConfig};

const DEFAULT_RATE: RateConfig = RateConfig { percent: 50, min_requests: 20, window: Duration::from_millis(10_000) };
const DEFAULT: EjectionConfig = EjectionConfig {
    failures: Some(5),
    rate: Some(DEFAULT_RATE),
    interval: Duration::from_millis(1000),
    max_interval: Duration::from_millis(30_000),
    slow_start: Duration::from_millis(5000),
    count_5xx: true,
};

/// Reads the map; every key has a default, and so has the map.
pub(super) fn from_section(section: Option<Section>, problems: &mut Problems) -> EjectionConfig {
    let Some(mut section) = section else { return DEFAULT };
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).ok();
    let failures = section.integer("failures", Some(5), 0..=1_000_000, problems);
    let rate = rate(&mut section, failures > 0, problems);
    let interval = section.millis("interval_ms", ms(DEFAULT.interval), 10..=MAX_DURATION_MS, problems);
    let default = ms(DEFAULT.max_interval.max(interval));
    let max_interval = section.millis("max_interval_ms", default, 10..=MAX_DURATION_MS, problems);
    if max_interval < interval {
        let text = format!(
            "is {}, but must not be below interval_ms, which is {}",
            max_interval.as_millis(),
            interval.as_millis()
        );
        section.note("max_interval_ms", text, problems);
    }
    let slow_start = section.millis("slow_start_ms", ms(DEFAULT.slow_start), 0..=MAX_DURATION_MS, problems);
    let count_5xx = section.boolean("count_5xx", true, problems);
    section.finish(problems);
    let failures = u32::try_from(failures).ok().filter(|failures| *failures > 0);
    EjectionConfig { failures, rate, interval, max_interval, slow_start, count_5xx }
}

/// Reads the rule by failure rate. Where `failures: 0` switches the other rule off, this one is off, too, unless
/// `failure_percent` is set.
fn rate(section: &mut Section, is_on: bool, problems: &mut Problems) -> Option<RateConfig> {
    let number = |value: i64| u32::try_from(value).unwrap_or(0);
    let default = if is_on { i64::from(DEFAULT_RATE.percent) } else { 0 };
    let percent = number(section.integer("failure_percent", Some(default), 0..=100, problems));
    let default = i64::from(DEFAULT_RATE.min_requests);
    let min_requests = number(section.integer("min_requests", Some(default), 1..=1_000_000, problems));
    let default = u64::try_from(DEFAULT_RATE.window.as_millis()).ok();
    let window = section.millis("window_ms", default, 100..=MAX_DURATION_MS, problems);
    (percent > 0).then_some(RateConfig { percent, min_requests, window })
}

//! Memory, threads and descriptors of a process over time, and whether they grow.

use std::fs;
use std::time::Duration;

/// The resources of a process at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sample {
    pub(crate) resident_kib: u64,
    pub(crate) threads: u64,
    pub(crate) descriptors: u64,
    pub(crate) sockets: u64,
}

/// Fewer samples say nothing: the process has just started.
const MIN_SAMPLES: usize = 30;
/// A process is busy at a sample if it made this many pushes in the time before.
const MIN_PUSHES: usize = 5;
/// The time before a sample in which pushes count.
const BUSY_TIME: Duration = Duration::from_secs(2);
/// The first part of the samples, during which caches and pools fill: one in this many.
const WARM_UP: usize = 4;

impl Sample {
    /// Reads the resources of a process; returns `None` if it has ended.
    pub(crate) fn of(pid: u32) -> Option<Sample> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let number = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        let links: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten().collect();
        let is_socket = |path: std::path::PathBuf| path.to_string_lossy().starts_with("socket:");
        let sockets =
            links.iter().filter_map(|link| fs::read_link(link.path()).ok()).filter(|path| is_socket(path.clone()));
        Some(Sample {
            resident_kib: number("VmRSS:")?,
            threads: number("Threads:")?,
            descriptors: links.len() as u64,
            sockets: sockets.count() as u64,
        })
    }
}

/// Returns the samples that were taken while pushes flowed. An idle process has closed its connections and holds no
/// messages, so it is not to be compared with a busy one: a run may begin with a broker that starts slowly. What a
/// process leaks while it is idle, it still has when it is busy. `pushes`: when pushes of the process began, ascending.
pub(crate) fn busy(samples: &[(Duration, Sample)], pushes: &[Duration]) -> Vec<Sample> {
    let n_before = |time: Duration| pushes.partition_point(|began| *began <= time);
    let is_busy = |at: &Duration| n_before(*at) - n_before(at.saturating_sub(BUSY_TIME)) >= MIN_PUSHES;
    samples.iter().filter(|(at, _)| is_busy(at)).map(|(_, sample)| *sample).collect()
}

/// Returns what grows in the samples of a busy process: the medians of the first and of the last third after the
/// warm-up are compared, so that single samples during a fault do not count.
pub(crate) fn growth(samples: &[Sample]) -> Vec<String> {
    if samples.len() < MIN_SAMPLES {
        return Vec::new();
    }
    let after_warm_up = &samples[samples.len() / WARM_UP..];
    let third = after_warm_up.len() / 3;
    let (first, last) = (&after_warm_up[..third], &after_warm_up[after_warm_up.len() - third..]);
    let mut found = Vec::new();
    for (name, value, allowed) in [
        ("resident KiB", (|sample| sample.resident_kib) as fn(&Sample) -> u64, 8 << 10),
        ("threads", |sample| sample.threads, 2),
        ("descriptors", |sample| sample.descriptors, 16),
        ("sockets", |sample| sample.sockets, 16),
    ] {
        let (before, after) = (median(first, value), median(last, value));
        if after > before + before / 10 + allowed {
            found.push(format!("{name} grew from {before} to {after}"));
        }
    }
    found
}

fn median(samples: &[Sample], value: fn(&Sample) -> u64) -> u64 {
    let mut values: Vec<u64> = samples.iter().map(value).collect();
    values.sort_unstable();
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(n: u64, sample: impl Fn(u64) -> Sample) -> Vec<Sample> {
        (0..n).map(sample).collect()
    }

    #[test]
    fn what_grows_is_named_and_a_warm_up_and_single_peaks_are_not() {
        let steady = Sample { resident_kib: 20_000, threads: 30, descriptors: 60, sockets: 40 };
        let warm_up = series(100, |n| Sample { resident_kib: 20_000.min(1_000 * n), ..steady });
        assert!(growth(&warm_up).is_empty());
        let peaks = series(100, |n| Sample { sockets: if n % 5 == 0 { 400 } else { 40 }, ..steady });
        assert!(growth(&peaks).is_empty());
        let leak = series(100, |n| Sample { resident_kib: 20_000 + 400 * n, ..steady });
        assert_eq!(growth(&leak).len(), 1, "{:?}", growth(&leak));
        let all = series(100, |n| Sample { resident_kib: 1_000 * n, threads: n, descriptors: 4 * n, sockets: 4 * n });
        assert_eq!(growth(&all).len(), 4, "{:?}", growth(&all));
        assert!(growth(&all[..MIN_SAMPLES - 1]).is_empty(), "too few samples");
    }

    /// The numbers of sockets of a process, one sample a second, and its pushes: 66 a second while it has any.
    fn recorded(sockets: &[(u64, u64)], idle: std::ops::Range<u64>) -> (Vec<(Duration, Sample)>, Vec<Duration>) {
        let mut samples = Vec::new();
        let steady = Sample { resident_kib: 20_000, threads: 30, descriptors: 60, sockets: 0 };
        for (seconds, sockets) in sockets {
            for _ in 0..*seconds {
                let at = Duration::from_secs(samples.len() as u64 + 1);
                samples.push((at, Sample { sockets: *sockets, ..steady }));
            }
        }
        let pushes = (0..66 * samples.len() as u64).map(|number| Duration::from_millis(number * 1000 / 66));
        let pushes = pushes.filter(|began| !idle.contains(&began.as_secs())).collect();
        (samples, pushes)
    }

    #[test]
    fn a_slow_start_without_traffic_is_no_growth_and_a_slow_leak_behind_it_is_found() {
        // A broker that was restarted needed 25 s, of a run of 60 s.
        let (samples, pushes) = recorded(&[(25, 4), (2, 15), (33, 27)], 0..25);
        let all: Vec<Sample> = samples.iter().map(|(_, sample)| *sample).collect();
        assert_eq!(growth(&all).len(), 1, "the samples as they are: {:?}", growth(&all));
        let judged = busy(&samples, &pushes);
        assert!(judged.len() > MIN_SAMPLES && growth(&judged).is_empty(), "{} {:?}", judged.len(), growth(&judged));
        // One socket every two seconds.
        let leaks: Vec<(u64, u64)> = [(25, 4)].into_iter().chain((0..50).map(|n| (2, 27 + n))).collect();
        let (samples, pushes) = recorded(&leaks, 0..25);
        assert_eq!(growth(&busy(&samples, &pushes)).len(), 1);
        // Also if it leaks only while it is idle, in the middle.
        let outage: Vec<(u64, u64)> =
            [(40, 27)].into_iter().chain((0..20).map(|n| (1, 4 + 2 * n))).chain([(40, 67)]).collect();
        let (samples, pushes) = recorded(&outage, 40..60);
        assert_eq!(growth(&busy(&samples, &pushes)).len(), 1);
    }

    #[test]
    fn a_sample_is_busy_with_enough_pushes_in_the_time_before() {
        let at = |millis: u64| Duration::from_millis(millis);
        let samples: Vec<_> = (1..6).map(|second| (at(1000 * second), Sample::default())).collect();
        let trickle: Vec<Duration> = (0..4).map(|number| at(1500 * number)).collect();
        assert_eq!(busy(&samples, &trickle).len(), 0);
        let burst: Vec<Duration> = (0..5).map(|number| at(2500 + number)).collect();
        assert_eq!(busy(&samples, &burst).len(), 2, "at 3 s and 4 s");
        assert_eq!(busy(&samples, &[]).len(), 0);
    }

    #[test]
    fn the_resources_of_this_process_are_read() {
        let sample = Sample::of(std::process::id()).expect("this process runs");
        assert!(sample.resident_kib > 0 && sample.threads > 0 && sample.descriptors > 0, "{sample:?}");
        assert_eq!(Sample::of(u32::MAX), None);
    }
}

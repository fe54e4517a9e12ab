//! Memory, threads and descriptors of a process over time, and whether they grow.

use std::fs;

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

/// Returns what grows: the medians of the first and of the last third after the warm-up are compared, so that single
/// samples during a fault do not count.
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

    #[test]
    fn the_resources_of_this_process_are_read() {
        let sample = Sample::of(std::process::id()).expect("this process runs");
        assert!(sample.resident_kib > 0 && sample.threads > 0 && sample.descriptors > 0, "{sample:?}");
        assert_eq!(Sample::of(u32::MAX), None);
    }
}

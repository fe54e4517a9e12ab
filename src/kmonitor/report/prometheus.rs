//! Exports the view as metrics. The text is rendered once for each view, with a writer of its own; only the ages are
//! computed for each answer.
//!
//! A label `source="kafka"` is set where the stored offsets are those of Kafka, so that a module that is moved from
//! ZooKeeper to Kafka has different series. Partitions that are gone or left behind have no series.

use std::collections::BTreeMap;
use std::time::Instant;

use super::exposition::{Exposition, Labels};
use crate::kmonitor::facts::{Source, Verdict};
use crate::kmonitor::view::{ClusterView, ModuleView, PartitionView, ReasonCode, View};

/// Which delays have series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Detail {
    /// `base.metrics_detail`.
    pub level: DetailLevel,
    /// `base.metrics_partitions`: with `Auto`, partitions have series if there are at most so many.
    pub max_partitions: usize,
}

/// `base.metrics_detail`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DetailLevel {
    /// Series of partitions as long as there are not too many.
    Auto,
    /// Series of modules only.
    Module,
    /// Series of all partitions.
    Partition,
}

impl Detail {
    fn includes(self, partitions: usize) -> bool {
        match self.level {
            DetailLevel::Auto => partitions <= self.max_partitions,
            DetailLevel::Module => false,
            DetailLevel::Partition => true,
        }
    }
}

/// Formats everything that is the same for all answers from this view.
pub(crate) fn render(view: &View, detail: Detail) -> Vec<u8> {
    let mut page = Exposition::default();
    let clusters: Vec<Cluster<'_>> = view.clusters.iter().map(|cluster| Cluster::of(cluster)).collect();
    partitions(&mut page, &clusters, detail);
    modules(&mut page, &clusters);
    bad_partitions(&mut page, &clusters);
    counts(&mut page, &clusters);
    page.finish()
}

/// Formats what changes with each answer: the ages at the time `now`.
pub(crate) fn render_ages(view: &View, now: Instant) -> Vec<u8> {
    let mut page = Exposition::default();
    let mut ages = page.family(
        "kmonitor_age_seconds",
        "Age of the oldest number that is shown of the cluster; absent before the first reading.",
    );
    for cluster in &view.clusters {
        if let Some(read) = cluster.oldest_read {
            let labels = Labels::default().with("cluster", &cluster.name);
            ages.series(&labels, format_args!("{:.1}", now.saturating_duration_since(read).as_secs_f64()));
        }
    }
    page.finish()
}

/// A cluster with the labels of its series.
struct Cluster<'a> {
    view: &'a ClusterView,
    labels: Labels,
    modules: Vec<Module<'a>>,
}

struct Module<'a> {
    view: &'a ModuleView,
    /// Cluster and module.
    labels: Labels,
    /// After the labels of the module, and between those of a partition.
    source: Option<&'static str>,
}

impl<'a> Cluster<'a> {
    fn of(view: &'a ClusterView) -> Self {
        let labels = Labels::default().with("cluster", &view.name);
        let module = |module: &'a ModuleView| Module {
            view: module,
            labels: labels.with("module", &module.name),
            source: (module.source == Source::Kafka).then(|| Source::Kafka.word()),
        };
        let counts = |module: &&ModuleView| !matches!(module.reason_code, ReasonCode::Gone | ReasonCode::LeftBehind);
        let modules = view.modules.iter().filter(counts).map(module).collect();
        Cluster { view, labels, modules }
    }
}

impl Module<'_> {
    /// Returns the labels of the series of the module, in alphabetical order.
    fn full(&self) -> Labels {
        let labels = self.source.map_or_else(|| self.labels.clone(), |source| self.labels.with("source", source));
        labels.with("topic", &self.view.topic)
    }

    /// Returns the partitions whose delay is known and counts.
    fn delays(&self) -> impl Iterator<Item = (&PartitionView, u64)> {
        let counts =
            |partition: &&PartitionView| !matches!(partition.reason_code, ReasonCode::Gone | ReasonCode::LeftBehind);
        self.view.partitions.iter().filter(counts).filter_map(|partition| Some((partition, partition.delay?)))
    }
}

fn partitions(page: &mut Exposition, clusters: &[Cluster<'_>], detail: Detail) {
    let count = |cluster: &Cluster<'_>| cluster.modules.iter().map(|module| module.delays().count()).sum::<usize>();
    let is_included = detail.includes(clusters.iter().map(count).sum());
    let mut delays = page.family(
        "kmonitor_delay_messages",
        "Messages of a partition that are still to be pushed; absent while unknown.",
    );
    for module in clusters.iter().flat_map(|cluster| &cluster.modules).filter(|_| is_included) {
        for (partition, delay) in module.delays() {
            let number = partition.partition.to_string();
            let topic = ("topic", &*module.view.topic);
            match module.source {
                Some(source) => {
                    delays.series_with(&module.labels, &[("partition", &number), ("source", source), topic], delay)
                }
                None => delays.series_with(&module.labels, &[("partition", &number), topic], delay),
            }
        }
    }
    let mut left_out = page.family(
        "kmonitor_metrics_partitions_left_out",
        "Partitions without a series kmonitor_delay_messages, because of metrics_detail or metrics_partitions.",
    );
    for cluster in clusters {
        left_out.series(&cluster.labels, if is_included { 0 } else { count(cluster) });
    }
}

fn modules(page: &mut Exposition, clusters: &[Cluster<'_>]) {
    let all = || clusters.iter().flat_map(|cluster| &cluster.modules);
    let mut verdicts = page.family(
        "kmonitor_module_verdict",
        "Worst verdict of a module: 0 OK, 1 LAGGING, 2 UNKNOWN, 3 REWOUND, 4 STALLED, 5 STOPPED.",
    );
    all().for_each(|module| verdicts.series(&module.full(), module.view.verdict.severity()));
    let mut delays = page.family(
        "kmonitor_module_delay_messages",
        "Messages of a module that are still to be pushed; absent while a partition is unknown.",
    );
    for module in all() {
        // The sum of what is known would be a wrong low number.
        if let Some(delay) = module.view.delay.filter(|_| !module.view.delay_is_partial) {
            delays.series(&module.full(), delay);
        }
    }
    let mut seconds = page.family(
        "kmonitor_module_seconds_behind",
        "Age of the oldest message of a module that is still to be pushed; absent while unknown.",
    );
    for module in all() {
        if let Some(behind) = module.view.seconds_behind.filter(|seconds| seconds.is_finite()) {
            seconds.series(&module.full(), format_args!("{behind:.1}"));
        }
    }
    rates(
        page,
        clusters,
        "kmonitor_module_messages_in_per_second",
        "Messages appended to the topic of a module in a second, over the last minute; absent while unknown.",
        |module| module.in_per_second,
    );
    rates(
        page,
        clusters,
        "kmonitor_module_messages_out_per_second",
        "Messages of a module pushed in a second, over the last minute; absent while unknown.",
        |module| module.out_per_second,
    );
    let mut lost = page.family(
        "kmonitor_module_lost_messages",
        "Messages between the stored offset and the oldest one, which Kafka deleted before they were pushed.",
    );
    all().for_each(|module| lost.series(&module.full(), module.view.lost));
}

fn rates(
    page: &mut Exposition,
    clusters: &[Cluster<'_>],
    name: &'static str,
    help: &'static str,
    rate_of: impl Fn(&ModuleView) -> Option<f64>,
) {
    let mut family = page.family(name, help);
    for module in clusters.iter().flat_map(|cluster| &cluster.modules) {
        if let Some(rate) = rate_of(module.view).filter(|rate| rate.is_finite()) {
            family.series(&module.full(), format_args!("{rate:.3}"));
        }
    }
}

fn bad_partitions(page: &mut Exposition, clusters: &[Cluster<'_>]) {
    let mut bad = page.family(
        "kmonitor_module_bad_partitions",
        "Partitions of a module by verdict other than OK; absent where there is none.",
    );
    for module in clusters.iter().flat_map(|cluster| &cluster.modules) {
        for verdict in Verdict::ALL.into_iter().filter(|verdict| *verdict != Verdict::Ok) {
            let partitions = module.view.partitions.iter().filter(|partition| partition.verdict == verdict).count();
            if partitions > 0 {
                bad.series_with(&module.full(), &[("verdict", verdict.word())], partitions);
            }
        }
    }
}

fn counts(page: &mut Exposition, clusters: &[Cluster<'_>]) {
    let mut partitions = page.family("kmonitor_partitions", "Partitions of a cluster by verdict.");
    for cluster in clusters {
        for verdict in Verdict::ALL {
            let count = cluster.view.counts[usize::from(verdict.severity())];
            partitions.series_with(&cluster.labels, &[("verdict", verdict.word())], count);
        }
    }
    let mut unknown = page.family(
        "kmonitor_unknown_partitions",
        "Partitions with a stored offset whose delay is unknown now, by reason; absent where there is none.",
    );
    for cluster in clusters {
        let mut by_reason: BTreeMap<&str, u64> = BTreeMap::new();
        let places = cluster.view.modules.iter().flat_map(|module| &module.partitions);
        places.filter_map(|partition| partition.unknown).for_each(|reason| *by_reason.entry(reason).or_default() += 1);
        by_reason.iter().for_each(|(reason, count)| {
            unknown.series_with(&cluster.labels, &[("reason", reason)], count);
        });
    }
    let mut gone =
        page.family("kmonitor_gone_partitions", "Partitions with a stored offset that do not exist any more.");
    clusters.iter().for_each(|cluster| gone.series(&cluster.labels, cluster.view.gone));
    let mut left_behind = page.family(
        "kmonitor_left_behind_partitions",
        "Partitions with a stored offset of topics that their module does not push any more.",
    );
    clusters.iter().for_each(|cluster| left_behind.series(&cluster.labels, cluster.view.left_behind));
    let mut known =
        page.family("kmonitor_cluster_known", "1 while the stored offsets of the cluster can be read, else 0.");
    clusters.iter().for_each(|cluster| known.series(&cluster.labels, u8::from(cluster.view.known)));
    let mut cycles =
        page.family("kmonitor_cycle_seconds", "Duration of the last reading of the cluster; absent before the first.");
    for cluster in clusters {
        if let Some(cycle) = cluster.view.cycle {
            cycles.series(&cluster.labels, format_args!("{:.3}", cycle.as_secs_f64()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kmonitor::report::fixture::{cluster, module, partition, unknown, view};
    use std::time::Duration;

    const AUTO: Detail = Detail { level: DetailLevel::Auto, max_partitions: 3 };

    fn text(view: &View, detail: Detail) -> String {
        String::from_utf8(render(view, detail)).unwrap()
    }

    fn sample() -> View {
        let late = PartitionView { verdict: Verdict::Stopped, ..partition(0, Some(12)) };
        let first = ModuleView {
            seconds_behind: Some(90.25),
            lost: 4,
            in_per_second: Some(12.6),
            out_per_second: Some(0.0),
            ..module("m", "t", vec![late, partition(1, Some(3)), partition(2, None)])
        };
        let kafka = ModuleView { source: Source::Kafka, ..module("m", "t", vec![partition(0, Some(1))]) };
        let gone = PartitionView { reason_code: ReasonCode::Gone, unknown: None, ..partition(0, None) };
        let gone = PartitionView { verdict: Verdict::Ok, ..gone };
        view(vec![cluster("c", vec![module("dead", "x", vec![gone]), first, kafka]), unknown("away")])
    }

    #[test]
    fn each_module_and_partition_has_its_series() {
        let text = text(&sample(), AUTO);
        for line in [
            r#"kmonitor_delay_messages{cluster="c",module="m",partition="0",topic="t"} 12"#,
            r#"kmonitor_delay_messages{cluster="c",module="m",partition="1",topic="t"} 3"#,
            r#"kmonitor_delay_messages{cluster="c",module="m",partition="0",source="kafka",topic="t"} 1"#,
            r#"kmonitor_metrics_partitions_left_out{cluster="c"} 0"#,
            r#"kmonitor_module_verdict{cluster="c",module="m",topic="t"} 5"#,
            r#"kmonitor_module_verdict{cluster="c",module="m",source="kafka",topic="t"} 0"#,
            r#"kmonitor_module_delay_messages{cluster="c",module="m",source="kafka",topic="t"} 1"#,
            r#"kmonitor_module_seconds_behind{cluster="c",module="m",topic="t"} 90.2"#,
            r#"kmonitor_module_messages_in_per_second{cluster="c",module="m",topic="t"} 12.600"#,
            r#"kmonitor_module_messages_out_per_second{cluster="c",module="m",topic="t"} 0.000"#,
            r#"kmonitor_module_lost_messages{cluster="c",module="m",topic="t"} 4"#,
            r#"kmonitor_module_bad_partitions{cluster="c",module="m",topic="t",verdict="STOPPED"} 1"#,
            r#"kmonitor_module_bad_partitions{cluster="c",module="m",topic="t",verdict="UNKNOWN"} 1"#,
            r#"kmonitor_partitions{cluster="c",verdict="STOPPED"} 1"#,
            r#"kmonitor_unknown_partitions{cluster="c",reason="leader_silent"} 1"#,
            r#"kmonitor_gone_partitions{cluster="c"} 0"#,
            r#"kmonitor_cluster_known{cluster="c"} 1"#,
            r#"kmonitor_cluster_known{cluster="away"} 0"#,
            r#"kmonitor_cycle_seconds{cluster="c"} 2.500"#,
        ] {
            assert!(text.lines().any(|known| known == line), "{line}\n{text}");
        }
        for absent in [
            "dead",
            r#"kmonitor_module_delay_messages{cluster="c",module="m",topic="t"}"#,
            r#"partition="2""#,
            r#"cycle_seconds{cluster="away""#,
            r#"seconds_behind{cluster="c",module="m",source"#,
            r#"per_second{cluster="c",module="m",source"#,
        ] {
            assert!(!text.contains(absent), "{absent}\n{text}");
        }
        // A scrape is refused if a series is there twice.
        let mut series: Vec<_> =
            text.lines().filter_map(|line| line.rsplit_once(' ')).map(|(series, _)| series).collect();
        let count = series.len();
        series.sort_unstable();
        series.dedup();
        assert_eq!(series.len(), count, "{text}");
    }

    #[test]
    fn too_many_partitions_have_no_series_at_all() {
        for (level, max_partitions, n_series) in [
            (DetailLevel::Auto, 3, 3),
            (DetailLevel::Auto, 2, 0),
            (DetailLevel::Module, 3, 0),
            (DetailLevel::Partition, 0, 3),
        ] {
            let text = text(&sample(), Detail { level, max_partitions });
            assert_eq!(text.matches("\nkmonitor_delay_messages{").count(), n_series, "{level:?} {max_partitions}");
            let left_out = format!("kmonitor_metrics_partitions_left_out{{cluster=\"c\"}} {}\n", 3 - n_series);
            assert!(text.contains(&left_out), "{left_out} {text}");
        }
    }

    #[test]
    fn ages_grow_with_the_time_of_the_answer() {
        let view = sample();
        let read = view.clusters[0].oldest_read.unwrap();
        let text = String::from_utf8(render_ages(&view, read + Duration::from_millis(61_250))).unwrap();
        let series: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(series, [r#"kmonitor_age_seconds{cluster="c"} 61.2"#]);
    }
}

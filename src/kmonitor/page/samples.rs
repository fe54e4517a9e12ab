//! Views that tests render: healthy, late, with a cluster that is away, and large ones.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::kmonitor::facts::{Moment, Source, Verdict};
use crate::kmonitor::report::fixture;
use crate::kmonitor::sparkline::code;
use crate::kmonitor::view::{ClusterView, History, ModuleView, PartitionView, ReasonCode, Trouble, View, module_id};

/// What makes one module of a sample.
struct Sample {
    name: &'static str,
    topic: &'static str,
    verdict: Verdict,
    code: ReasonCode,
    reason: &'static str,
    delay: Option<u64>,
    behind: Option<f64>,
    since: u64,
    owners: Option<u32>,
    partitions: i32,
    bad: i32,
    shape: fn(u64) -> Option<u64>,
}

fn quiet(_: u64) -> Option<u64> {
    Some(0)
}

fn busy(minute: u64) -> Option<u64> {
    Some((minute * minute * 7 + minute * 13) % 23)
}

fn growing(minute: u64) -> Option<u64> {
    Some(if minute < 41 { minute * 5 % 9 } else { (minute - 40).pow(3) * 2 })
}

fn waves(minute: u64) -> Option<u64> {
    Some(400 + 350 * (minute % 15))
}

fn restarted(minute: u64) -> Option<u64> {
    match minute {
        18..=24 => None,
        25..=32 => Some(4_990 / (minute - 24)),
        _ => busy(minute),
    }
}

fn lost(minute: u64) -> Option<u64> {
    (minute < 52).then_some(minute % 4)
}

fn ok(
    name: &'static str,
    topic: &'static str,
    reason: &'static str,
    delay: u64,
    shape: fn(u64) -> Option<u64>,
) -> Sample {
    Sample {
        name,
        topic,
        verdict: Verdict::Ok,
        code: if delay == 0 { ReasonCode::NothingWaits } else { ReasonCode::Waiting },
        reason,
        delay: Some(delay),
        behind: Some(if delay == 0 { 0.0 } else { 2.0 }),
        since: 190_000,
        owners: Some(1),
        partitions: 8,
        bad: 0,
        shape,
    }
}

fn healthy_modules() -> Vec<Sample> {
    vec![
        ok("audit_log", "audit", "nothing waits", 0, quiet),
        ok("cache_invalidation", "catalog_changes", "12 messages wait, 2 s behind", 12, busy),
        ok("crm_sync", "customers", "nothing waits", 0, restarted),
        ok("mail", "mail_outbox", "3 messages wait, 1 s behind", 3, busy),
        ok("push_notifications", "events", "214 messages wait, 2 s behind", 214, waves),
        ok("search_index", "catalog_changes", "nothing waits", 0, busy),
        ok("thumbnails", "uploads", "nothing waits", 0, quiet),
    ]
}

fn late_modules() -> Vec<Sample> {
    let mut modules = vec![
        Sample {
            name: "invoices",
            topic: "billing",
            verdict: Verdict::Stopped,
            code: ReasonCode::NoMember,
            reason: "nobody pushes 3 of 8 partitions: the module has had no live member for 95 s; 1,204 messages wait, \
                     the first for 90 s",
            delay: Some(1_204),
            behind: Some(90.0),
            since: 95,
            owners: Some(0),
            partitions: 8,
            bad: 3,
            shape: growing,
        },
        Sample {
            name: "webhooks",
            topic: "order_events",
            verdict: Verdict::Stalled,
            code: ReasonCode::NotMoving,
            reason: "host-1:5f3a owns it, but the stored offset has not moved for 12 min; 37 messages wait, the first \
                     for 12 min: see ktransfer.log.wf and the backend",
            delay: Some(37),
            behind: Some(741.0),
            since: 730,
            owners: Some(1),
            partitions: 2,
            bad: 1,
            shape: |minute| Some(if minute < 47 { minute % 3 } else { 37 }),
        },
        Sample {
            name: "loyalty_points",
            topic: "purchases",
            verdict: Verdict::Rewound,
            code: ReasonCode::WentBack,
            reason: "the stored offset went back 2 min ago, from 5,000 to 10: 4,990 messages pushed again",
            delay: Some(5_113),
            behind: Some(3_600.0 * 7.0),
            since: 127,
            owners: Some(1),
            partitions: 1,
            bad: 1,
            shape: |minute| Some(if minute < 58 { 0 } else { 5_000 }),
        },
        Sample {
            name: "geo_lookup",
            topic: "addresses",
            verdict: Verdict::Unknown,
            code: ReasonCode::LeaderSilent,
            reason: "broker 3, which leads the partition, does not answer; last read 8 min ago",
            delay: None,
            behind: None,
            since: 470,
            owners: None,
            partitions: 4,
            bad: 4,
            shape: lost,
        },
        Sample {
            name: "recommendations",
            topic: "clicks",
            verdict: Verdict::Lagging,
            code: ReasonCode::SecondsBehind,
            reason: "4 min behind, 12,400 messages; falls by 80/s, caught up in about 2 min",
            delay: Some(12_400),
            behind: Some(251.0),
            since: 1_260,
            owners: Some(3),
            partitions: 24,
            bad: 9,
            shape: |minute| Some(if minute < 39 { minute % 7 } else { 40_000 / (1 + (minute - 38) / 4) }),
        },
    ];
    modules.extend(healthy_modules());
    modules
}

/// Everything is pushed.
pub(in crate::kmonitor) fn healthy() -> View {
    view(vec![cluster("orders", healthy_modules())])
}

/// One module of each verdict, and a second cluster that is fine.
pub(in crate::kmonitor) fn late() -> View {
    let common =
        vec![ok("sessions", "logins", "nothing waits", 0, busy), ok("metering", "usage", "nothing waits", 0, quiet)];
    view(vec![cluster("orders", late_modules()), cluster("common", common)])
}

/// As [`late`], with the names of an attacker.
pub(in crate::kmonitor) fn hostile() -> View {
    let mut view = late();
    let modules = &mut Arc::make_mut(&mut view.clusters[0]).modules;
    let module = modules.iter_mut().find(|module| module.verdict == Verdict::Rewound).expect("there is one");
    module.name = "<img src=x onerror=alert(1)>".into();
    module.topic = "\"><script>alert(2)</script>".into();
    view
}

/// As [`late`], but the second cluster cannot be read.
pub(in crate::kmonitor) fn away() -> View {
    let mut view = late();
    let common = Arc::make_mut(&mut view.clusters[1]);
    common.known = false;
    common.oldest_read = Some(earlier(Instant::now(), 42));
    common.trouble = Some(Trouble {
        text: "ZooKeeper has not answered for 42 s (connection refused)".into(),
        since: SystemTime::now() - Duration::from_secs(42),
    });
    for module in &mut common.modules {
        (module.verdict, module.reason_code) = (Verdict::Unknown, ReasonCode::SourceSilent);
        (module.delay, module.seconds_behind) = (None, None);
        module.reason = "the stored offset could not be read for 42 s (connection refused)".into();
    }
    view
}

/// `count` modules of 100 partitions, nine of ten of them not OK, with a history that does not repeat.
pub(in crate::kmonitor) fn many(count: usize) -> View {
    let mut random = 1_u64;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        random >> 40
    };
    let mut orders = cluster("orders", Vec::new());
    let samples = late_modules();
    orders.modules = (0..count)
        .map(|index| {
            let bad = &samples[index % 10 % 5];
            let sample = if index % 10 == 9 { &samples[5] } else { bad };
            let mut module = module("orders", sample);
            module.name = format!("module_of_some_department_{index:05}").into();
            module.topic = format!("topic_{index:05}").into();
            module.id = module_id("orders", &module.name, &module.topic, Source::Zookeeper);
            module.history = std::array::from_fn(|_| code(next() % 20_000));
            let partition = module.partitions[0].clone();
            module.partitions =
                (0..100).map(|number| PartitionView { partition: number, ..partition.clone() }).collect();
            module
        })
        .collect();
    view(vec![orders])
}

fn view(clusters: Vec<ClusterView>) -> View {
    View { number: 48_213, made_at: SystemTime::now(), clusters: clusters.into_iter().map(Arc::new).collect() }
}

fn cluster(name: &str, samples: Vec<Sample>) -> ClusterView {
    let now = Moment::now();
    let read = earlier(now.at, 2);
    let mut modules: Vec<_> = samples.iter().map(|sample| module(name, sample)).collect();
    modules.sort_by(|one, other| one.name.cmp(&other.name));
    ClusterView {
        number: 7,
        published: read,
        oldest_read: Some(read),
        cycle: Some(Duration::from_secs(5)),
        history_end: now.wall,
        ..fixture::cluster(name, modules)
    }
}

fn module(cluster: &str, sample: &Sample) -> ModuleView {
    let since = SystemTime::now() - Duration::from_secs(sample.since);
    let history: History = std::array::from_fn(|minute| (sample.shape)(minute as u64).map_or(0, code));
    let bad = sample.bad;
    let owner = (sample.owners == Some(1)).then(|| Arc::from("host-1:5f3a"));
    let partitions = (0..sample.partitions).map(|number| {
        let is_bad = number < bad;
        let share = if bad == 0 { sample.partitions } else { bad };
        let delay = sample.delay.map(|delay| if is_bad || bad == 0 { delay / share as u64 } else { 0 });
        PartitionView {
            partition: number,
            verdict: if is_bad { sample.verdict } else { Verdict::Ok },
            since,
            reason: if is_bad { sample.reason.into() } else { "nothing waits".into() },
            reason_code: if is_bad { sample.code } else { ReasonCode::NothingWaits },
            delay,
            stored: Some(81_250),
            oldest: Some(0),
            newest: delay.and_then(|delay| i64::try_from(81_250 + delay).ok()),
            lost: 0,
            seconds_behind: if is_bad { sample.behind } else { Some(0.0) },
            seconds_from: Some("history"),
            seconds_at_least: false,
            stored_moved: Some(earlier(Instant::now(), sample.since.min(500))),
            owner: owner.clone(),
            read_at: Some(earlier(Instant::now(), 2)),
            unknown: None,
            history: Arc::new(history),
        }
    });
    ModuleView {
        id: module_id(cluster, sample.name, sample.topic, Source::Zookeeper),
        name: sample.name.into(),
        topic: sample.topic.into(),
        source: Source::Zookeeper,
        verdict: sample.verdict,
        since,
        reason: sample.reason.into(),
        reason_code: sample.code,
        delay: sample.delay,
        delay_is_partial: false,
        seconds_behind: sample.behind,
        seconds_at_least: sample.verdict == Verdict::Rewound,
        lost: 0,
        in_per_second: Some(12.6),
        out_per_second: Some(if sample.verdict == Verdict::Stopped { 0.0 } else { 12.5 }),
        owners: sample.owners,
        members: sample.owners,
        partitions: partitions.collect(),
        history,
        in_legacy: true,
    }
}

fn earlier(now: Instant, seconds: u64) -> Instant {
    now.checked_sub(Duration::from_secs(seconds)).unwrap_or(now)
}

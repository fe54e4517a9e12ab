//! A script of faults, derived from a seed: which fault begins when, and when it ends.
//!
//! The script is data and is printed before it runs, so that a failed run can be repeated with its seed. Invariant: a
//! fault has ended before the next one with the same target begins.

use std::fmt;
use std::time::Duration;

/// What a fault hits. Faults with different targets may overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// The process of an instance of ktransfer.
    Instance(usize),
    /// The link between an instance and the service of its groups: ZooKeeper, or the brokers.
    GroupLink(usize),
    ZooKeeper,
    /// The broker, or the one that is the controller.
    Broker,
    /// The broker that coordinates the group, if groups are in Kafka.
    Coordinator,
    /// The link between the instances and the broker.
    BrokerLink,
    /// A backend of the fleet.
    Backend(usize),
}

/// A fault and its repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// SIGKILL; a new instance starts at the end.
    Kill,
    /// SIGTERM, which must exit with 0; a new instance starts at the end.
    Stop,
    /// SIGSTOP; SIGCONT at the end.
    Pause,
    /// RST on all connections; nothing to repair.
    Reset,
    /// All connections are closed and new ones are refused.
    Cut,
    /// No byte passes.
    Stall,
    /// Only the answers are lost.
    LoseAnswers,
    /// The far ends of the connections close, without a packet to this side.
    HalfOpen,
    /// Every byte is late by this time.
    Delay(Duration),
    /// At most this rate.
    Limit(u32),
    /// A backend answers after this time.
    Slow(Duration),
    /// A backend answers with this status.
    Status(u16),
    /// A backend reads requests and does not answer.
    Hang,
    /// A backend accepts connections and closes each at once.
    Close,
    /// A backend answers with bytes that are not HTTP.
    Garbage,
}

/// One fault of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// The time from the start of the script.
    pub(crate) at: Duration,
    /// The time until the repair.
    pub(crate) lasts: Duration,
    pub(crate) target: Target,
    pub(crate) fault: Fault,
}

impl fmt::Display for Step {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f64(), self.lasts.as_secs_f64());
        write!(formatter, "{at:6.1} s  {:?} of {:?} for {lasts:.1} s", self.fault, self.target)
    }
}

/// The faults of a run, in the order in which they begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FaultScript {
    pub(crate) name: String,
    pub(crate) steps: Vec<Step>,
}

impl fmt::Display for FaultScript {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "faults of {}:", self.name)?;
        self.steps.iter().try_for_each(|step| writeln!(formatter, "  {step}"))
    }
}

/// The shape of a random script.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScriptShape {
    /// No fault begins after this time.
    pub(crate) length: Duration,
    /// Mean time between the beginnings of two faults.
    pub(crate) interval: Duration,
    pub(crate) n_instances: usize,
    pub(crate) n_backends: usize,
    /// Whether the groups are in ZooKeeper; otherwise their coordinator fails instead.
    pub(crate) has_zookeeper: bool,
    /// The session timeout; a pause or a cut lasts up to three times as long.
    pub(crate) session: Duration,
}

/// How long a server or an instance needs after the end of a fault, before the next fault with the same target.
const RECOVERY: Duration = Duration::from_secs(4);

impl FaultScript {
    /// Returns the script of a seed. The same seed and shape give the same script.
    pub(crate) fn random(seed: u64, shape: ScriptShape) -> FaultScript {
        let mut random = SplitMix(seed);
        let mut steps: Vec<Step> = Vec::new();
        let mut at = shape.interval;
        while at < shape.length {
            let target = random_target(&mut random, &shape);
            let (fault, lasts) = random_fault(&mut random, target, shape.session);
            // Some faults hit all backends, so that attempts at a message fail several times in a row.
            let targets = match target {
                Target::Backend(_) if random.below(3) == 0 => (0..shape.n_backends).map(Target::Backend).collect(),
                _ => vec![target],
            };
            for target in targets {
                let overlaps = |step: &Step| conflict(step.target, target) && at < step.at + step.lasts + RECOVERY;
                if !steps.iter().any(overlaps) {
                    steps.push(Step { at, lasts, target, fault });
                }
            }
            at += shape.interval.mul_f64(0.5 + random.below(100) as f64 / 100.0);
        }
        FaultScript { name: format!("seed {seed}"), steps }
    }

    /// Returns the time at which the last fault has ended.
    pub(crate) fn end(&self) -> Duration {
        self.steps.iter().map(|step| step.at + step.lasts).max().unwrap_or_default()
    }
}

/// Whether a fault of one target may not overlap a fault of the other: the same target, or two instances at once, since
/// the group needs one that works.
fn conflict(one: Target, other: Target) -> bool {
    let is_instance = |target| matches!(target, Target::Instance(_));
    let is_kafka = |target| matches!(target, Target::Broker | Target::Coordinator | Target::ZooKeeper);
    one == other || is_instance(one) && is_instance(other) || is_kafka(one) && is_kafka(other)
}

fn random_target(random: &mut SplitMix, shape: &ScriptShape) -> Target {
    let instance = random.below(shape.n_instances as u64) as usize;
    let backend = random.below(shape.n_backends as u64) as usize;
    match random.below(20) {
        0..=5 => Target::Instance(instance),
        6..=11 => Target::GroupLink(instance),
        12 if shape.has_zookeeper => Target::ZooKeeper,
        12 => Target::Coordinator,
        13 => Target::Broker,
        14..=15 if shape.has_zookeeper => Target::BrokerLink,
        14..=15 => Target::GroupLink(instance),
        _ => Target::Backend(backend),
    }
}

fn random_fault(random: &mut SplitMix, target: Target, session: Duration) -> (Fault, Duration) {
    let short = Duration::from_millis(200 + random.below(800));
    let beyond_the_session = session.mul_f64(1.5 + random.below(150) as f64 / 100.0);
    let either = if random.below(2) == 0 { short } else { beyond_the_session };
    match target {
        Target::Instance(_) => match random.below(3) {
            0 => (Fault::Kill, short),
            1 => (Fault::Stop, short),
            _ => (Fault::Pause, either),
        },
        Target::GroupLink(_) | Target::BrokerLink => match random.below(7) {
            0 | 1 => (Fault::Reset, Duration::ZERO),
            2 => (Fault::Cut, either),
            3 => (Fault::Stall, either),
            4 => (Fault::LoseAnswers, either),
            5 => (Fault::HalfOpen, either),
            _ => (Fault::Delay(Duration::from_millis(10 + random.below(90))), beyond_the_session),
        },
        Target::ZooKeeper | Target::Broker | Target::Coordinator => match random.below(2) {
            0 => (Fault::Kill, short),
            _ => (Fault::Pause, either),
        },
        Target::Backend(_) => match random.below(5) {
            0 => (Fault::Slow(Duration::from_millis(200 + random.below(800))), beyond_the_session),
            1 => (Fault::Status(503), either),
            2 => (Fault::Hang, either),
            3 => (Fault::Close, either),
            _ => (Fault::Garbage, either),
        },
    }
}

/// The generator SplitMix64 (Steele, Lea and Flood 2014): few lines, and the same numbers on every machine.
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Returns a number below `bound`, which must not be 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const SHAPE: ScriptShape = ScriptShape {
        length: Duration::from_secs(3600),
        interval: Duration::from_secs(4),
        n_instances: 3,
        n_backends: 2,
        has_zookeeper: true,
        session: Duration::from_secs(3),
    };

    #[test]
    fn a_seed_gives_one_script_and_another_seed_another() {
        assert_eq!(FaultScript::random(7, SHAPE), FaultScript::random(7, SHAPE));
        assert_ne!(FaultScript::random(7, SHAPE).steps, FaultScript::random(8, SHAPE).steps);
        assert!(FaultScript::random(7, SHAPE).to_string().starts_with("faults of seed 7:\n"));
    }

    #[test]
    fn an_hour_has_every_kind_of_fault_and_no_fault_meets_another_of_its_target() {
        let steps = FaultScript::random(1, SHAPE).steps;
        assert!(steps.len() > 300, "{} faults", steps.len());
        for (number, step) in steps.iter().enumerate() {
            let later = steps[number + 1..].iter().find(|later| conflict(later.target, step.target));
            assert!(later.is_none_or(|later| later.at >= step.at + step.lasts + RECOVERY), "{step} meets {later:?}");
        }
        let kind = |text: String| text.split(['(', ' ']).next().unwrap_or_default().to_owned();
        let kinds: BTreeSet<String> = steps.iter().map(|step| kind(format!("{:?}", step.fault))).collect();
        let targets: BTreeSet<String> = steps.iter().map(|step| kind(format!("{:?}", step.target))).collect();
        assert_eq!((kinds.len(), targets.len()), (14, 6), "{kinds:?} {targets:?}");
        let of_all_backends = steps.windows(2).filter(|pair| {
            let are_backends = pair.iter().all(|step| matches!(step.target, Target::Backend(_)));
            are_backends && pair[0].at == pair[1].at && pair[0].fault == pair[1].fault
        });
        assert!(of_all_backends.count() > 10, "faults of all backends at once");
    }
}

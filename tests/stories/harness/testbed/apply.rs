//! Carries out the faults of a script, and records when each began and ended.

use std::time::Duration;

use super::super::fault_oracle::Disturbance;
use super::super::faults::{Fault, FaultScript, Step, Target};
use super::super::fleet::{Arrival, Door, Reply};
use super::super::link::{Flow, Traffic};
use super::super::{Kafka, Link, STOP_DEADLINE, ZooKeeper};
use super::services::Services;
use super::{Testbed, normal};

/// A slow backend takes long for one offset in this many, so that its keys go on at different rates.
const SLOW_ONE_IN: i64 = 8;

/// A fault in progress.
struct Running {
    step: Step,
    /// The time at which it began.
    from: Duration,
    /// The name of the instance that it hit.
    instance: Option<String>,
}

impl Testbed {
    /// Carries out a script, which it prints first; returns when the last fault has ended.
    pub(crate) fn run(&mut self, script: &FaultScript) {
        eprint!("{script}");
        let start = self.now();
        let mut waiting: Vec<Step> = script.steps.iter().rev().copied().collect();
        let mut running: Vec<Running> = Vec::new();
        loop {
            let next_begin = waiting.last().map(|step| start + step.at);
            let next_end = running.iter().map(|fault| fault.from + fault.step.lasts).min();
            let Some(next) = next_begin.into_iter().chain(next_end).min() else { return };
            // The time of a fault is part of the script; the wait is not for something to happen.
            std::thread::sleep(next.saturating_sub(self.now()));
            if next_end == Some(next) {
                let ended = |fault: &Running| fault.from + fault.step.lasts == next;
                let index = running.iter().position(ended).expect("it is the earliest end");
                self.repair(running.swap_remove(index));
            } else {
                let step = waiting.pop().expect("it is the earliest beginning");
                let from = self.now();
                let instance = match step.target {
                    Target::Instance(slot) | Target::GroupLink(slot) => Some(self.instances[slot].name.clone()),
                    _ => None,
                };
                self.begin(step);
                running.push(Running { step, from, instance });
            }
        }
    }

    fn begin(&mut self, step: Step) {
        match (step.target, step.fault) {
            (Target::Instance(slot), Fault::Kill) => self.instances[slot].ktransfer.daemon.kill9(),
            (Target::Instance(slot), Fault::Stop) => self.instances[slot].ktransfer.daemon.terminate(),
            (Target::Instance(slot), Fault::Pause) => self.instances[slot].ktransfer.daemon.signal(libc::SIGSTOP),
            (Target::GroupLink(slot), fault) => {
                self.services.group_links(slot).iter().for_each(|link| disturb(link, fault));
            }
            (Target::BrokerLink, fault) => disturb(self.broker_link(), fault),
            (Target::ZooKeeper, Fault::Pause) => self.zookeeper().freeze(),
            (Target::ZooKeeper, _) => self.zookeeper().kill9(),
            (Target::Broker | Target::Coordinator, Fault::Pause) => self.broker(step.target).freeze(),
            (Target::Broker | Target::Coordinator, _) => self.broker(step.target).kill9(),
            (Target::Backend(server), Fault::Close) => self.fleet.set_door(server, Door::Closing),
            (Target::Backend(server), fault) => self.fleet.script(server, faulty(fault)),
            (Target::Instance(_), fault) => panic!("{fault:?} is no fault of an instance"),
        }
    }

    fn repair(&mut self, Running { step, from, instance }: Running) {
        match (step.target, step.fault) {
            (Target::Instance(slot), Fault::Pause) => self.instances[slot].ktransfer.daemon.signal(libc::SIGCONT),
            (Target::Instance(slot), fault) => self.replace(slot, fault),
            (Target::GroupLink(slot), _) => self.services.group_links(slot).iter().for_each(Link::restore),
            (Target::BrokerLink, _) => self.broker_link().restore(),
            (Target::ZooKeeper, Fault::Pause) => self.zookeeper().unfreeze(),
            (Target::ZooKeeper, _) => self.zookeeper().restart(),
            (Target::Broker | Target::Coordinator, Fault::Pause) => self.broker(step.target).unfreeze(),
            (Target::Broker | Target::Coordinator, _) => self.broker(step.target).restart(),
            (Target::Backend(server), Fault::Close) => self.fleet.set_door(server, Door::Open),
            (Target::Backend(server), _) => self.fleet.script(server, normal(server as u64, self.letters.is_some())),
        }
        let is_pause = matches!(step.target, Target::Instance(_)) && step.fault == Fault::Pause;
        let what = format!("{:?} of {:?}", step.fault, step.target);
        self.disturbances.push(Disturbance { what, from, until: self.now(), instance, is_pause });
    }

    fn broker(&self, target: Target) -> &Kafka {
        self.services.broker(target == Target::Coordinator)
    }

    fn zookeeper(&self) -> &ZooKeeper {
        match &self.services {
            Services::WithZooKeeper { cluster, .. } => &cluster.zookeeper_server,
            Services::Kraft(_) => panic!("this testbed has no ZooKeeper"),
        }
    }

    fn broker_link(&self) -> &Link {
        match &self.services {
            Services::WithZooKeeper { broker_link, .. } => broker_link,
            Services::Kraft(_) => panic!("this testbed has a link for each instance and broker"),
        }
    }

    /// Waits for the end of an instance, and starts another one in its slot.
    fn replace(&mut self, slot: usize, fault: Fault) {
        let status = self.instances[slot].ktransfer.daemon.wait(STOP_DEADLINE);
        // A stop while the service of the groups cannot be reached ends with 4: the claims could not be released.
        if fault == Fault::Stop && !matches!(status.code(), Some(0 | 4)) {
            self.bad_exits.push(format!("instance {} ended with {status}", self.instances[slot].name));
        }
        self.instances[slot] = self.start_instance(slot);
    }
}

fn disturb(link: &Link, fault: Fault) {
    match fault {
        Fault::Reset => link.reset(),
        Fault::Cut => link.cut(),
        Fault::Stall => link.stall(),
        Fault::LoseAnswers => link.set(Traffic::only(Flow::ToServer)),
        Fault::HalfOpen => link.half_open(),
        Fault::Delay(delay) => link.set(Traffic::delayed(delay)),
        Fault::Limit(rate) => link.set(Traffic::limited(rate)),
        fault => panic!("{fault:?} is no fault of a link"),
    }
}

fn faulty(fault: Fault) -> impl Fn(&Arrival) -> Reply + Send + Sync + 'static {
    move |arrival| match fault {
        Fault::Slow(after) if arrival.position().1 % SLOW_ONE_IN == 0 => Reply::ok().after(after),
        Fault::Slow(_) => Reply::ok(),
        Fault::Status(status) => Reply::status(status),
        Fault::Hang => Reply::hang(),
        Fault::Garbage => Reply::garbage(),
        fault => panic!("{fault:?} is no fault of a backend"),
    }
}

//! The pauses of operators in the text beside an offset, and what the texts of all partitions say together.
//!
//! - `m=NUMBER,TIME,NAME`: the latest change of the pause of the whole module that the member knew. The number grows
//!   with each change and is odd while the module is paused; time and name of the operator follow only then. The
//!   largest number beside any partition of the topic counts. So one commit pauses all partitions, whoever owns them.
//! - `r=NUMBER`: the number of the latest resume of the module. Left out if the module is not paused, since `m` has it,
//!   and if it is the number before that of `m`.
//! - `p=NUMBER,TIME,NAME`: the partition is paused. A resume of the module ends the pauses of its partitions with a
//!   smaller number, and takes one that is larger than all of them.
//!
//! Each number is at least the time of the change in milliseconds since 1970. So a change counts as the latest one also
//! where the numbers before it were erased: instances of a version without pauses commit without these fields.
//!
//! Time and name are left out where the text has no room for them, and the name is cut.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::broker::PartitionId;
use crate::ktransfer::pauses::{ModulePaused, PauseChange, PauseMark, Pauses};

/// Longest name of an operator in the text, with its escapes.
const MAX_NAME_BYTES: usize = 32;
/// Largest number that is read: it leaves room for every change that can follow.
const MAX_NUMBER: u64 = 1 << 53;
/// The name of an operator who is not in the text.
const UNKNOWN: &str = "unknown";

/// The pause of the whole module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::ktransfer::group) struct ModulePause {
    /// Number of the latest change: odd while the module is paused, 0 before the first one.
    pub(in crate::ktransfer::group) number: u64,
    /// Who paused; `None` while the module is not paused.
    pub(in crate::ktransfer::group) mark: Option<PauseMark>,
}

/// The pause of a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::ktransfer::group) struct PartitionPause {
    /// Larger than that of the latest resume of the module before the pause.
    number: u64,
    mark: PauseMark,
}

/// What a commit of one partition says of pauses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::ktransfer::group) struct PauseFields {
    pub(in crate::ktransfer::group) module: ModulePause,
    /// Number of the latest resume of the module, 0 before the first one.
    resumed: u64,
    /// `None` while the partition is not paused by itself.
    pub(in crate::ktransfer::group) partition: Option<PartitionPause>,
}

impl PauseFields {
    /// Whether the partition is paused, by itself or with the module.
    pub(super) fn is_paused(&self) -> bool {
        self.partition.is_some() || self.module.mark.is_some()
    }

    /// Returns the fields, each with a semicolon before it, with or without times and names.
    pub(super) fn text(&self, has_marks: bool) -> String {
        let mut text = String::new();
        let mut put = |name: &str, number: u64, mark: Option<&PauseMark>| {
            // Writing to a string cannot fail.
            let _ = write!(text, ";{name}={number}");
            if let Some(PauseMark { by, at_ms }) = mark.filter(|_| has_marks) {
                let _ = write!(text, ",{at_ms},{}", escaped(by));
            }
        };
        let number = self.module.number;
        if number > 0 {
            put("m", number, self.module.mark.as_ref());
        }
        if self.resumed != resume_before(number) {
            put("r", self.resumed, None);
        }
        if let Some(PartitionPause { number, mark }) = &self.partition {
            put("p", *number, Some(mark));
        }
        text
    }

    /// Reads the value of `m`; returns `None` if it is damaged.
    pub(super) fn read_module(&mut self, value: &str) -> Option<()> {
        let (number, mark) = number_and_mark(value)?;
        self.module = ModulePause { number, mark: (number % 2 == 1).then_some(mark) };
        self.resumed = resume_before(number);
        Some(())
    }

    /// Reads the value of `r`, which follows `m`; returns `None` if it is damaged.
    pub(super) fn read_resumed(&mut self, value: &str) -> Option<()> {
        self.resumed = value.parse().ok().filter(|resumed| *resumed <= self.module.number)?;
        Some(())
    }

    /// Reads the value of `p`; returns `None` if it is damaged.
    pub(super) fn read_partition(&mut self, value: &str) -> Option<()> {
        let (number, mark) = number_and_mark(value)?;
        self.partition = Some(PartitionPause { number, mark });
        Some(())
    }
}

/// The pauses of a group, as far as a member knows them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::ktransfer::group) struct GroupPauses {
    module: ModulePause,
    /// Number of the latest resume of the module, 0 before the first one.
    resumed: u64,
    partitions: BTreeMap<PartitionId, PartitionPause>,
}

impl GroupPauses {
    /// Takes what the commits of the topic say. `is_held`: this member alone stores the pause of the partition, so it
    /// knows better.
    pub(in crate::ktransfer::group) fn take<'a>(
        &mut self,
        commits: impl Iterator<Item = (PartitionId, &'a PauseFields)>,
        is_held: impl Fn(PartitionId) -> bool,
    ) {
        self.partitions.retain(|partition, _| is_held(*partition));
        for (partition, fields) in commits {
            if self.module.number < fields.module.number {
                self.module = fields.module.clone();
            }
            self.resumed = self.resumed.max(fields.resumed);
            if let Some(pause) = fields.partition.as_ref().filter(|_| !is_held(partition)) {
                self.partitions.insert(partition, pause.clone());
            }
        }
        self.end_resumed();
    }

    /// Removes the pauses of partitions that a resume of the module has ended.
    fn end_resumed(&mut self) {
        let resumed = self.resumed;
        self.partitions.retain(|_, pause| resumed <= pause.number);
    }

    /// Makes a change. `least` is the least number that it may take: the present time, and more than an attempt before
    /// it took. A pause that exists keeps its mark. Fails, and changes nothing, if the change would have no effect
    /// because the whole module is paused.
    pub(in crate::ktransfer::group) fn apply(&mut self, change: &PauseChange, least: u64) -> Result<(), ModulePaused> {
        let is_paused = self.module.mark.is_some();
        match change {
            PauseChange::Pause(None, mark) if !is_paused => {
                self.module = ModulePause { number: self.next_number(least, true), mark: Some(mark.clone()) };
            }
            PauseChange::Pause(None, _) => {}
            PauseChange::Pause(Some(partition), mark) => {
                let pause = || PartitionPause { number: self.module.number.max(least), mark: mark.clone() };
                self.partitions.entry(*partition).or_insert_with(pause);
            }
            PauseChange::Resume(None) if is_paused || !self.partitions.is_empty() => {
                self.module = ModulePause { number: self.next_number(least, false), mark: None };
                self.resumed = self.module.number;
                self.partitions.clear();
            }
            PauseChange::Resume(None) => {}
            PauseChange::Resume(Some(_)) if is_paused => return Err(ModulePaused),
            PauseChange::Resume(Some(partition)) => drop(self.partitions.remove(partition)),
        }
        Ok(())
    }

    /// Makes the state of the module the latest change, without a change of it: what was stored or attempted before it,
    /// and may be found later, does not count.
    pub(super) fn restate_module(&mut self, least: u64) {
        let is_paused = self.module.mark.is_some();
        self.module.number = self.next_number(least, is_paused);
        if !is_paused {
            self.resumed = self.module.number;
            self.end_resumed();
        }
    }

    /// Returns the number of a change of the module: larger than all that are known.
    fn next_number(&self, least: u64, is_odd: bool) -> u64 {
        let least = least.max(self.largest_number().saturating_add(1));
        least + u64::from((least % 2 == 1) != is_odd)
    }

    /// Returns the number of the latest change of the module.
    pub(super) fn module_number(&self) -> u64 {
        self.module.number
    }

    /// Returns these pauses, as a later change than all that are known. `least` as for [`apply`](Self::apply).
    pub(in crate::ktransfer::group) fn replaced_by(&self, pauses: &Pauses, least: u64) -> GroupPauses {
        let partitions = pauses.partitions.iter().map(|(id, mark)| PauseChange::Pause(Some(*id), mark.clone()));
        let module = pauses.module.iter().map(|mark| PauseChange::Pause(None, mark.clone()));
        let mut replaced = self.clone();
        for change in [PauseChange::Resume(None)].into_iter().chain(partitions).chain(module) {
            // None of these changes can fail.
            let _ = replaced.apply(&change, least);
        }
        replaced
    }

    /// Returns the largest number of a change.
    pub(super) fn largest_number(&self) -> u64 {
        self.partitions.values().map(|pause| pause.number).max().unwrap_or_default().max(self.module.number)
    }

    /// Returns what a commit of `partition` says.
    pub(in crate::ktransfer::group) fn fields(&self, partition: PartitionId) -> PauseFields {
        let partition = self.partitions.get(&partition).cloned();
        PauseFields { module: self.module.clone(), resumed: self.resumed, partition }
    }

    /// Returns the pauses for operators and for the dispatcher.
    pub(in crate::ktransfer::group) fn pauses(&self) -> Pauses {
        let partitions = self.partitions.iter().map(|(partition, pause)| (*partition, pause.mark.clone())).collect();
        Pauses { module: self.module.mark.clone(), partitions }
    }
}

/// Returns the number of the resume before a change of the module with this number, where nothing else is known.
fn resume_before(number: u64) -> u64 {
    number - number % 2
}

/// Returns the name with what is not plain percent-encoded, cut to [`MAX_NAME_BYTES`].
fn escaped(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        let is_plain = byte.is_ascii_alphanumeric() || b"-._@".contains(&byte);
        let item = if is_plain { char::from(byte).to_string() } else { format!("%{byte:02X}") };
        if text.len() + item.len() > MAX_NAME_BYTES {
            break;
        }
        text.push_str(&item);
    }
    text
}

fn unescaped(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    // A cut may have split a character.
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn number_and_mark(value: &str) -> Option<(u64, PauseMark)> {
    let mut parts = value.splitn(3, ',');
    let number = parts.next()?.parse().ok().filter(|number| *number <= MAX_NUMBER)?;
    let at_ms = parts.next().map_or(Some(0), |text| text.parse().ok())?;
    let by = parts.next().map_or_else(|| Some(UNKNOWN.to_owned()), unescaped)?;
    Some((number, PauseMark { by, at_ms }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(by: &str) -> PauseMark {
        PauseMark { by: by.to_owned(), at_ms: 7 }
    }

    fn text_of(pauses: &GroupPauses, partition: PartitionId) -> String {
        pauses.fields(partition).text(true)
    }

    /// Returns what a member knows that reads these texts and holds nothing.
    fn read(texts: &[(PartitionId, String)]) -> GroupPauses {
        let fields_of = |text: &String| {
            let mut fields = PauseFields::default();
            for field in text.split(';').filter(|field| !field.is_empty()) {
                let (name, value) = field.split_once('=').expect("a field");
                let is_read = match name {
                    "m" => fields.read_module(value),
                    "r" => fields.read_resumed(value),
                    _ => fields.read_partition(value),
                };
                is_read.expect("readable");
            }
            fields
        };
        let commits: Vec<_> = texts.iter().map(|(partition, text)| (*partition, fields_of(text))).collect();
        let mut pauses = GroupPauses::default();
        pauses.take(commits.iter().map(|(partition, fields)| (*partition, fields)), |_| false);
        pauses
    }

    #[test]
    fn the_largest_number_of_the_module_counts_whoever_committed_it() {
        let mut one = GroupPauses::default();
        assert_eq!(text_of(&one, 0), "", "nothing was ever paused");
        one.apply(&PauseChange::Pause(None, mark("ann")), 0).unwrap();
        assert_eq!(text_of(&one, 0), ";m=1,7,ann");
        assert_eq!(read(&[(0, text_of(&one, 0)), (1, String::new())]).pauses().module, Some(mark("ann")));
        let paused = text_of(&one, 1);
        one.apply(&PauseChange::Resume(None), 0).unwrap();
        assert_eq!(
            (text_of(&one, 0), read(&[(0, text_of(&one, 0)), (1, paused)]).pauses()),
            (";m=2".into(), Pauses::default())
        );
        one.apply(&PauseChange::Resume(None), 0).unwrap();
        assert_eq!(text_of(&one, 0), ";m=2", "nothing to resume");
    }

    #[test]
    fn a_resume_of_the_module_ends_the_pauses_of_its_partitions_whoever_owns_them() {
        let mut pauses = GroupPauses::default();
        pauses.apply(&PauseChange::Pause(Some(3), mark("ann")), 0).unwrap();
        pauses.apply(&PauseChange::Pause(Some(3), mark("bob")), 0).unwrap();
        assert_eq!((text_of(&pauses, 3), text_of(&pauses, 4)), (";p=0,7,ann".into(), String::new()));
        let early = text_of(&pauses, 3);
        pauses.apply(&PauseChange::Pause(None, mark("bob")), 0).unwrap();
        assert_eq!(text_of(&pauses, 3), ";m=1,7,bob;p=0,7,ann");
        assert_eq!(pauses.apply(&PauseChange::Resume(Some(3)), 0), Err(ModulePaused));
        assert_eq!(read(&[(3, early.clone()), (4, ";m=1".into())]).pauses().partitions.len(), 1);
        pauses.apply(&PauseChange::Resume(None), 0).unwrap();
        pauses.apply(&PauseChange::Pause(Some(4), mark("ann")), 0).unwrap();
        let known = read(&[(3, early), (4, text_of(&pauses, 4))]);
        assert_eq!(known.pauses().partitions, BTreeMap::from([(4, mark("ann"))]));
        // Without a pause of the module.
        pauses.apply(&PauseChange::Resume(None), 0).unwrap();
        assert_eq!((pauses.pauses(), text_of(&pauses, 4)), (Pauses::default(), ";m=4".into()));
    }

    #[test]
    fn numbers_are_times_and_still_say_what_a_resume_ends() {
        let mut pauses = GroupPauses::default();
        pauses.apply(&PauseChange::Pause(Some(3), mark("ann")), 1000).unwrap();
        pauses.apply(&PauseChange::Pause(None, mark("bob")), 2000).unwrap();
        assert_eq!(text_of(&pauses, 3), ";m=2001,7,bob;r=0;p=1000,7,ann");
        // The pause of the module does not end that of its partition.
        assert_eq!(read(&[(3, text_of(&pauses, 3)), (4, String::new())]), pauses);
        let early = text_of(&pauses, 3);
        // The clock of the next operator's instance is behind.
        pauses.apply(&PauseChange::Resume(None), 500).unwrap();
        assert_eq!(text_of(&pauses, 4), ";m=2002");
        assert_eq!(read(&[(3, early.clone()), (4, text_of(&pauses, 4))]).pauses(), Pauses::default());
        pauses.apply(&PauseChange::Pause(None, mark("bob")), 9000).unwrap();
        assert_eq!(text_of(&pauses, 4), ";m=9001,7,bob;r=2002");
        assert!(read(&[(3, early), (4, text_of(&pauses, 4))]).partitions.is_empty());
        // A resume is later than the pause of a partition whose owner has a clock ahead.
        pauses.apply(&PauseChange::Resume(None), 9100).unwrap();
        pauses.apply(&PauseChange::Pause(Some(3), mark("ann")), 1_000_000).unwrap();
        pauses.apply(&PauseChange::Resume(None), 9200).unwrap();
        assert_eq!(text_of(&pauses, 3), ";m=1000002");
        for value in ["", "x", "-1", "1000003"] {
            assert_eq!(pauses.fields(3).read_resumed(value), None, "{value}");
        }
    }

    #[test]
    fn a_state_of_the_module_can_be_made_the_latest() {
        let mut resumed = GroupPauses::default();
        resumed.restate_module(1000);
        let mut paused = resumed.clone();
        paused.apply(&PauseChange::Pause(None, mark("ann")), 0).unwrap();
        paused.restate_module(2000);
        assert_eq!((text_of(&resumed, 0), text_of(&paused, 0)), (";m=1000".into(), ";m=2001,7,ann;r=1000".into()));
    }

    #[test]
    fn a_member_knows_the_pauses_of_its_own_partitions_better() {
        let mut pauses = GroupPauses::default();
        pauses.apply(&PauseChange::Pause(Some(3), mark("ann")), 0).unwrap();
        pauses.apply(&PauseChange::Pause(Some(4), mark("ann")), 0).unwrap();
        let late = pauses.fields(3);
        pauses.apply(&PauseChange::Resume(Some(3)), 0).unwrap();
        let none = PauseFields::default();
        pauses.take([(3, &late), (4, &none), (5, &late)].into_iter(), |partition| partition < 5);
        let partitions: Vec<_> = pauses.pauses().partitions.into_keys().collect();
        assert_eq!(partitions, [4, 5]);
    }

    #[test]
    fn names_are_escaped_and_cut_and_damaged_fields_are_refused() {
        let mut pauses = GroupPauses::default();
        pauses.apply(&PauseChange::Pause(Some(0), mark(";=,é %")), 0).unwrap();
        assert_eq!(text_of(&pauses, 0), ";p=0,7,%3B%3D%2C%C3%A9%20%25");
        assert_eq!(read(&[(0, text_of(&pauses, 0))]), pauses);
        assert_eq!(pauses.fields(0).text(false), ";p=0");
        assert_eq!(read(&[(0, ";p=1".into())]).pauses().partitions[&0].by, UNKNOWN);
        let mut long = GroupPauses::default();
        long.apply(&PauseChange::Pause(None, mark(&"é".repeat(100))), 0).unwrap();
        assert_eq!(text_of(&long, 0).len(), ";m=1,7,".len() + 30);
        for value in ["", "x", "-1", "1,", "1,x", "1,2,%", "1,2,%4", "1,2,%+4", "9007199254740993", "1,2,%é"] {
            assert_eq!(PauseFields::default().read_module(value), None, "{value}");
            assert_eq!(PauseFields::default().read_partition(value), None, "{value}");
        }
    }
}

//! Computes the commit point of one partition from the messages that were sent to workers and are not done.
//!
//! This module uses neither Kafka, ZooKeeper nor time: the dispatcher calls it and acts on the result.
//!
//! Invariant: the commit point never passes a message that was opened and is not done. Offsets rise, but need
//! not be contiguous: compaction and transactions leave holes, which the commit point skips.
//!
//! Messages above the commit point may be done already, in this claim or in an earlier one: [`Window::ahead`] returns
//! them for the group to store, and [`Window::resuming`] continues with them.

use std::collections::VecDeque;
use std::ops::Range;

use crate::broker::Offset;

/// The messages of one partition, beginning with the first that is not done.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// One slot for each message, in the order of offsets. The first slot is never done.
    slots: VecDeque<Slot>,
    /// Number of done slots. Each is behind a slot that is not done.
    done: usize,
    /// The next offset to read after a restart; `None` if it was unknown at first and no message is done.
    commit_point: Option<Offset>,
    /// The offset after the highest one that has a slot so far; lower offsets are refused.
    end: Option<Offset>,
    /// Ranges of offsets, ascending, whose messages were done in an earlier claim and have not been read in this one.
    done_before: VecDeque<Range<Offset>>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    offset: Offset,
    done: bool,
}

impl Window {
    /// Creates an empty window without a commit point.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Creates an empty window with the commit point `next`.
    pub(super) fn starting_at(next: Offset) -> Self {
        Window { commit_point: Some(next), ..Self::default() }
    }

    /// Moves the commit point to `next`, past offsets without a message, if every message that was added is done.
    /// Returns the commit point if it moved.
    pub(super) fn skip_to(&mut self, next: Offset) -> Option<Offset> {
        if !self.slots.is_empty() || self.commit_point.is_some_and(|point| next <= point) {
            return None;
        }
        self.end = Some(self.end.map_or(next, |end| end.max(next)));
        self.commit_point = Some(next);
        Some(next)
    }

    /// Whether the message at `offset` was added.
    pub(super) fn has_passed(&self, offset: Offset) -> bool {
        self.end.is_some_and(|end| offset < end)
    }

    /// Creates an empty window with the commit point `next`. Messages with offsets in `done_before`, ascending ranges
    /// above `next`, are done already.
    pub(super) fn resuming(next: Offset, done_before: &[Range<Offset>]) -> Self {
        let done_before = done_before.iter().filter(|range| next < range.end && range.start < range.end).cloned();
        Window { commit_point: Some(next), done_before: done_before.collect(), ..Self::default() }
    }

    /// Whether the message at `offset` was done in an earlier claim; such a message is passed without a push. Called
    /// with rising offsets.
    pub(super) fn was_done(&mut self, offset: Offset) -> bool {
        while self.done_before.front().is_some_and(|range| range.end <= offset) {
            self.done_before.pop_front();
        }
        self.done_before.front().is_some_and(|range| range.contains(&offset))
    }

    /// From now on no message counts as done in an earlier claim.
    pub(super) fn repeat_done_before(&mut self) {
        self.done_before.clear();
    }

    /// Returns the number of messages done ahead of the commit point, without those of [`was_done`](Self::was_done)
    /// that have not been read yet.
    pub(super) fn done_ahead(&self) -> usize {
        self.done
    }

    /// Returns the offsets above the commit point whose messages are done, as ascending ranges; a range may include
    /// holes. If there are more than `max_ranges`, the shortest ones are left out.
    pub(super) fn ahead(&self, max_ranges: usize) -> Vec<Range<Offset>> {
        let mut ranges: Vec<Range<Offset>> = Vec::new();
        let mut continues = false;
        for slot in &self.slots {
            match ranges.last_mut() {
                Some(last) if slot.done && continues => last.end = slot.offset.saturating_add(1),
                _ if slot.done => ranges.push(slot.offset..slot.offset.saturating_add(1)),
                _ => {}
            }
            continues = slot.done;
        }
        // Messages of earlier claims that were not read yet in this one are done as well.
        let next_to_read = self.end.unwrap_or(Offset::MIN);
        let not_read = self.done_before.iter().filter(|range| next_to_read < range.end);
        ranges.extend(not_read.map(|range| range.start.max(next_to_read)..range.end));
        if max_ranges < ranges.len() {
            ranges.sort_unstable_by_key(|range| std::cmp::Reverse(range.end.saturating_sub(range.start)));
            ranges.truncate(max_ranges);
            ranges.sort_unstable_by_key(|range| range.start);
        }
        ranges
    }

    /// Adds a slot for a message that is about to be sent to a worker. Returns false and changes nothing if this offset
    /// or a higher one was added before.
    #[must_use]
    pub(super) fn open(&mut self, offset: Offset) -> bool {
        self.enter(offset, false)
    }

    /// Adds a slot for a message that is done without a push. Returns the commit point if it moved.
    pub(super) fn pass(&mut self, offset: Offset) -> Option<Offset> {
        if !self.enter(offset, true) {
            return None;
        }
        self.done += 1;
        self.advance()
    }

    /// Marks the message at `offset` done. Returns the commit point if it moved. Does nothing if `offset` is not open.
    pub(super) fn close(&mut self, offset: Offset) -> Option<Offset> {
        let index = self.index_of(offset)?;
        let slot = &mut self.slots[index];
        if slot.done {
            return None;
        }
        slot.done = true;
        self.done += 1;
        self.advance()
    }

    /// Marks the message at `offset` done, also if it was not added yet: then it counts as done in an earlier claim
    /// when it is. Returns the commit point if it moved.
    pub(super) fn finish(&mut self, offset: Offset) -> Option<Offset> {
        let was_added = self.has_passed(offset) || self.commit_point.is_some_and(|point| offset < point);
        if was_added {
            return self.close(offset);
        }
        let end = offset.saturating_add(1);
        let place = self.done_before.partition_point(|range| range.end < offset);
        match self.done_before.get_mut(place) {
            Some(range) if range.start <= end => *range = range.start.min(offset)..range.end.max(end),
            _ => self.done_before.insert(place, offset..end),
        }
        None
    }

    /// Returns the next offset to read after a restart; `None` if it was unknown at first and no message is done.
    pub(super) fn commit_point(&self) -> Option<Offset> {
        self.commit_point
    }

    /// Returns the number of messages that would be read again after a restart: those from the first one not done on.
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Returns the offset of the first message that is not done, which the commit point cannot pass.
    pub(super) fn first(&self) -> Option<Offset> {
        self.slots.front().map(|slot| slot.offset)
    }

    fn enter(&mut self, offset: Offset, done: bool) -> bool {
        if self.end.is_some_and(|end| offset < end) {
            return false;
        }
        self.end = Some(offset.saturating_add(1));
        self.slots.push_back(Slot { offset, done });
        true
    }

    /// Returns the index of the slot of `offset`. Without holes this is the distance from the first offset. Each hole
    /// makes the index smaller than that distance, so then a binary search finds it.
    fn index_of(&self, offset: Offset) -> Option<usize> {
        let first = self.slots.front()?.offset;
        let distance = usize::try_from(offset.checked_sub(first)?).ok()?;
        if self.slots.get(distance).is_some_and(|slot| slot.offset == offset) {
            return Some(distance);
        }
        self.slots.binary_search_by_key(&offset, |slot| slot.offset).ok()
    }

    /// Drops the done slots at the front. Returns the commit point if it moved.
    fn advance(&mut self) -> Option<Offset> {
        let mut newest_done = None;
        while let Some(slot) = self.slots.front().filter(|slot| slot.done) {
            newest_done = Some(slot.offset);
            self.slots.pop_front();
            self.done -= 1;
        }
        // If an open message is left, the commit point is its offset: reading may skip a hole before it. Otherwise it
        // is the offset after the last message done.
        let next = self.slots.front().map_or(newest_done?.saturating_add(1), |slot| slot.offset);
        self.commit_point = Some(next);
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_commit_point_is_the_end_of_the_done_prefix() {
        let mut window = Window::new();
        for offset in [300, 301, 302, 303] {
            assert!(window.open(offset));
        }
        for (offset, resume_at, left, ahead) in
            [(301, None, 4, 1), (300, Some(302), 2, 0), (300, None, 2, 0), (303, None, 2, 1), (302, Some(304), 0, 0)]
        {
            assert_eq!(window.close(offset), resume_at, "close {offset}");
            assert_eq!((window.len(), window.done), (left, ahead), "after {offset}");
        }
        assert_eq!(window.commit_point(), Some(304));
    }

    #[test]
    fn the_commit_point_skips_holes_and_filtered_messages() {
        let mut window = Window::new();
        assert_eq!(window.commit_point(), None);
        assert_eq!(window.pass(7), Some(8), "without an open message, the commit point moves with each passed message");
        assert!(window.open(20));
        assert_eq!(window.pass(21), None);
        assert!(window.open(40));
        assert_eq!(window.close(30), None, "30 was never opened");
        assert_eq!(window.close(20), Some(40), "the commit point skips the hole up to the next open message");
        assert_eq!(window.close(40), Some(41));
        assert_eq!(window.len(), 0);
    }

    #[test]
    fn a_message_may_be_done_before_it_is_read() {
        let mut window = Window::resuming(10, &[14..16, 30..31]);
        for offset in [20, 13, 16, 12, 5, 14] {
            assert_eq!(window.finish(offset), None);
        }
        assert_eq!(window.ahead(9), [12..17, 20..21, 30..31]);
        assert!(window.open(10) && window.open(11));
        let done: Vec<Offset> = (12..22).filter(|offset| window.was_done(*offset)).collect();
        assert_eq!(done, [12, 13, 14, 15, 16, 20]);
        assert_eq!((window.finish(10), window.finish(11)), (Some(11), Some(12)), "as close does");
        assert_eq!(window.pass(12), Some(13));
        assert_eq!(window.finish(12), None);
    }

    #[test]
    fn an_offset_that_does_not_rise_is_refused() {
        let mut window = Window::new();
        assert!(window.open(5));
        assert!(!window.open(5));
        assert!(!window.open(4));
        assert_eq!(window.pass(3), None);
        assert_eq!(window.close(5), Some(6));
        assert!(!window.open(5), "refused also after it is done");
        assert!(window.open(Offset::MAX));
        assert_eq!(window.close(Offset::MAX), Some(Offset::MAX));
        assert_eq!(window.close(Offset::MIN), None);
    }

    #[test]
    fn messages_done_ahead_survive_a_restart() {
        let mut window = Window::resuming(10, &[]);
        for offset in [10, 11, 12, 14, 15, 20] {
            assert!(window.open(offset));
        }
        for offset in [12, 14, 20] {
            assert_eq!(window.close(offset), None);
        }
        assert_eq!((window.commit_point(), window.done_ahead()), (Some(10), 3));
        // No message lies between 12 and 14.
        assert_eq!(window.ahead(10), [12..15, 20..21]);
        assert_eq!(window.ahead(1), std::iter::once(12..15).collect::<Vec<_>>());

        let mut next = Window::resuming(10, &window.ahead(10));
        assert_eq!(next.ahead(10), [12..15, 20..21], "not read yet, and still done");
        let was_done: Vec<bool> = [10, 11, 12, 14, 15, 20]
            .map(|offset| {
                let was_done = next.was_done(offset);
                let moved = if was_done { next.pass(offset) } else { next.open(offset).then_some(0) };
                assert!(moved.is_none_or(|moved| moved == 0), "10 is open");
                was_done
            })
            .into();
        assert_eq!(was_done, [false, false, true, true, false, true]);
        assert_eq!(next.ahead(10), [12..15, 20..21]);
        assert_eq!([next.close(11), next.close(10), next.close(15)], [None, Some(15), Some(21)]);
        assert!(next.ahead(10).is_empty());
    }

    #[test]
    fn an_empty_window_skips_offsets_without_a_message() {
        let mut window = Window::starting_at(10);
        assert_eq!((window.commit_point(), window.has_passed(10)), (Some(10), false));
        assert_eq!(window.skip_to(12), Some(12), "two transaction markers");
        assert_eq!((window.skip_to(12), window.skip_to(3)), (None, None));
        assert!(!window.open(11), "a message below the commit point");
        assert!(window.open(12) && window.has_passed(12));
        assert_eq!(window.skip_to(14), None, "12 is not done");
        assert_eq!(window.close(12), Some(13));
        assert_eq!(window.skip_to(14), Some(14));
        assert_eq!(window.pass(20), Some(21));
        let mut unknown = Window::new();
        assert_eq!(unknown.skip_to(7), Some(7));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Open(u8),
        Pass(u8),
        Close(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let hole = prop_oneof![4 => Just(0u8), 1 => 0u8..4];
        let step = prop_oneof![
            3 => hole.clone().prop_map(Step::Open),
            1 => hole.prop_map(Step::Pass),
            4 => (0usize..64).prop_map(Step::Close),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        /// Compares the window with a model that keeps every message and searches from the start.
        #[test]
        fn the_window_agrees_with_a_model_that_keeps_everything(start in -5i64..1000, steps in steps()) {
            let mut window = Window::new();
            let mut all: Vec<(Offset, bool)> = Vec::new();
            let mut next = start;
            for step in steps {
                let before = window.commit_point();
                let moved = match step {
                    Step::Open(hole) => {
                        next += Offset::from(hole);
                        prop_assert!(window.open(next));
                        all.push((next, false));
                        next += 1;
                        None
                    }
                    Step::Pass(hole) => {
                        next += Offset::from(hole);
                        all.push((next, true));
                        next += 1;
                        window.pass(next - 1)
                    }
                    Step::Close(index) => {
                        let Some(entry) = all.get_mut(index) else { continue };
                        entry.1 = true;
                        window.close(entry.0)
                    }
                };
                let prefix = all.iter().take_while(|(_, done)| *done).count();
                let behind = &all[prefix..];
                prop_assert_eq!(window.len(), behind.len());
                prop_assert_eq!(window.done, behind.iter().filter(|(_, done)| *done).count());
                if let Some(point) = moved {
                    prop_assert!(before.is_none_or(|before| before < point));
                    let expected = behind.first().map_or(all[prefix - 1].0 + 1, |(offset, _)| *offset);
                    prop_assert_eq!(point, expected);
                }
                prop_assert_eq!(window.commit_point().is_some(), prefix > 0);
                // What is stored as done ahead is exactly what is done behind the first open message.
                let ahead = window.ahead(usize::MAX);
                for (offset, done) in behind {
                    prop_assert_eq!(ahead.iter().any(|range| range.contains(offset)), *done);
                }
                prop_assert!(ahead.windows(2).all(|pair| pair[0].end < pair[1].start));
                // All open messages are at or after the commit point, and the done prefix is before it.
                if let Some(point) = window.commit_point() {
                    prop_assert!(behind.iter().all(|(offset, _)| point <= *offset));
                    prop_assert!(all[..prefix].iter().all(|(offset, _)| *offset < point));
                }
            }
        }
    }
}

//! The pages that newer ones have replaced, and that clients still read.
//!
//! A client that reads slowly may have its page for a minute, and in this time there are many newer ones. Each of them
//! is memory that no response counts, because all clients of a page share it. So it is bounded here.

use std::sync::Mutex;

use super::PageWatch;
use crate::locks::lock;

/// Pages that were replaced, the oldest first.
#[derive(Default)]
pub struct OlderPages(Mutex<Vec<PageWatch>>);

impl OlderPages {
    /// Adds pages that were replaced, forgets those that nobody reads, and withdraws the oldest of the others until the
    /// rest has at most `max` bytes: the connections of their clients are closed.
    pub fn add(&self, pages: impl IntoIterator<Item = PageWatch>, max: usize) {
        let mut older = lock(&self.0);
        older.extend(pages);
        older.retain(|page| 0 < page.held_bytes());
        let mut held: usize = older.iter().map(PageWatch::held_bytes).sum();
        for page in &*older {
            if held <= max {
                return;
            }
            held = held.saturating_sub(page.held_bytes());
            page.withdraw();
        }
    }

    /// Returns the number of pages that clients still read.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        lock(&self.0).iter().filter(|page| 0 < page.held_bytes()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{Body, SharedBytes};

    #[test]
    fn of_the_older_pages_that_are_read_the_oldest_are_withdrawn_beyond_the_limit() {
        let pages: Vec<Body> = (0..4).map(|_| SharedBytes::from(vec![0; 10]).into()).collect();
        let watch = |page: &Body| match page {
            Body::Shared { bytes, .. } => bytes.watch(),
            _ => unreachable!("it is shared"),
        };
        let mut watches: Vec<PageWatch> = pages.iter().map(watch).collect();
        watches.insert(1, SharedBytes::from(vec![0; 99]).watch());
        let older = OlderPages::default();
        let withdrawn = |pages: &[Body]| pages.iter().map(Body::is_withdrawn).collect::<Vec<_>>();
        older.add(watches, 40);
        assert_eq!((lock(&older.0).len(), withdrawn(&pages)), (4, vec![false; 4]), "nobody reads one of them");
        older.add([], 25);
        assert_eq!(withdrawn(&pages), [true, true, false, false]);
        drop(pages);
        older.add([], 25);
        assert!(lock(&older.0).is_empty());
    }
}
